"""The rating page over HTTP: what a rater is told, what is refused, and what is kept before it is thanked for."""

import json
import socket

import pytest

import raters
from cagsr.rating.sanitize import shown
from cagsr.rating.security import LARGEST_BODY
from cagsr.rating.server import ROUTES
from cagsr.rating.session import open_rating


@pytest.fixture
def directory(tmp_path):
    return raters.comparison(tmp_path / "comparison", 9)


@pytest.fixture
def rating(directory):
    with raters.rated(directory, items=10) as open_one:
        yield open_one


@pytest.fixture
def anna(rating):
    with raters.Client(rating.links["anna"]) as client:
        yield client


def test_every_route_is_known_and_there_is_no_other():
    assert ROUTES == ("/", "/answer", "/enter", "/script.js", "/state", "/style.css", "/undo")


def test_the_link_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(rating, anna):
    path = rating.links["anna"].removeprefix(f"http://{anna.address}")
    reply = anna.send("GET", path, {"Host": anna.address})
    assert (reply.status, reply.headers["location"]) == (303, "/")
    attributes = {part.strip().lower() for part in reply.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes


def test_no_answer_names_a_system_or_a_check(rating, anna):
    texts = [anna.get(path).body for path in ("/", "/state", "/script.js")]
    for _ in range(12):
        item = anna.get("/state").json["item"]
        for question in ("relevance", "coherence", "overall"):
            texts.append(anna.answer(item["number"], question, 3).body)
    assert anna.get("/state").json["item"] is None
    assert b"tuned" in b"".join(texts), "responses say it themselves"
    assert set(item) == {"number", "prompt", "responses", "answers"}
    for text in texts[3:]:
        assert set(json.loads(text)) == {"done", "total", "last", "item"}
    assert not any(word in b"".join(texts) for word in (b"foreign", b"repeated", b'"base"', b"systems"))


def test_a_rater_goes_on_where_they_stopped_and_others_are_not_in_the_way(rating, anna, directory):
    first = anna.get("/state").json
    assert (first["done"], first["total"], first["last"]) == (0, 12, None)
    number = first["item"]["number"]
    after = anna.answer(number, "coherence", 2).json
    assert after["item"]["answers"] == {"coherence": 2}
    assert after["done"] == 0
    with raters.Client(rating.links["ben"]) as ben:
        assert ben.get("/state").json["last"] is None
    with raters.rated(directory) as again, raters.Client(again.links["anna"]) as client:
        assert client.get("/state").json == after


def test_an_open_page_goes_on_after_a_restart(directory):
    with raters.rated(directory) as rating, raters.Client(rating.links["anna"]) as anna:
        pass
    port = int(anna.address.split(":")[1])
    with open_rating(directory, "anna", port=port) as again, raters.served(again), anna:
        assert anna.get("/state").status == 200


def test_an_undo_brings_the_item_back(anna):
    number = anna.get("/state").json["item"]["number"]
    for question in ("relevance", "coherence", "overall"):
        state = anna.answer(number, question, 4).json
    assert state["item"]["number"] != number
    assert state["done"] == 1
    back = anna.post("/undo", {"answer": state["last"]}).json
    assert back["done"] == 0
    assert back["item"]["number"] == number
    assert back["item"]["answers"] == {"relevance": 4, "coherence": 4}
    assert anna.post("/undo", {"answer": state["last"]}).json == back


@pytest.mark.parametrize("others", ['a={"b": "c, d"}', "a=b c; =; ;;x", 'a="', "é=ü"])
def test_cookies_of_other_programs_at_this_address_are_not_in_the_way(anna, others):
    for cookie in (f"{others}; {anna.cookie}", f"{anna.cookie}; {others}"):
        assert anna.send("GET", "/state", {**anna.headers, "Cookie": cookie}).status == 200


def plain(client: raters.Client, *lines: str) -> int:
    """The status of a request made of just these lines."""
    with socket.create_connection(("127.0.0.1", int(client.address.split(":")[1]))) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return int(connection.recv(64).split()[1])


def test_a_request_that_says_two_things_is_refused(anna):
    host, cookie = f"Host: {anna.address}", f"Cookie: {anna.cookie}"
    get = "GET /state HTTP/1.1"
    assert plain(anna, get, host, cookie) == 200
    assert plain(anna, get, host, "Host: evil.example", cookie) == 400
    assert plain(anna, get, host, cookie, cookie) == 403
    own, other = f"Origin: http://{anna.address}", "Origin: https://evil.example"
    for origins in ((own, other), (other, own)):
        assert plain(anna, get, host, cookie, *origins) == 403
    sites = ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site")
    assert plain(anna, get, host, cookie, *sites) == 403


def test_a_token_opens_nothing_but_the_entrance_and_a_cookie_does_not_open_that(anna):
    host, token = f"Host: {anna.address}", anna.cookie.partition("=")[2]
    assert plain(anna, f"GET /enter?token={token} HTTP/1.1", host) == 303
    assert plain(anna, f"GET /enter?token={token}&token={token} HTTP/1.1", host) == 403
    assert plain(anna, f"GET /state?token={token} HTTP/1.1", host) == 403
    assert plain(anna, "GET /enter HTTP/1.1", host, f"Cookie: {anna.cookie}") == 403
    assert plain(anna, f"GET http://{anna.address}/state HTTP/1.1", "Host: evil.example") == 403


def test_what_changes_something_must_say_where_it_comes_from(anna):
    headers = {**anna.headers, "Content-Type": "application/json"}
    body = json.dumps({"item": 0, "question": "overall", "value": 5}).encode()
    for changed in ({"Origin": ""}, {"Sec-Fetch-Site": "none"}):
        assert anna.send("POST", "/answer", headers | changed, body).status == 403
    del headers["Origin"]
    assert anna.send("POST", "/answer", headers, body).status == 403


def test_no_socket_is_opened(anna):
    lines = [f"Host: {anna.address}", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    assert plain(anna, "GET /socket HTTP/1.1", *lines) == 403
    assert plain(anna, "GET /socket HTTP/1.1", *lines, f"Cookie: {anna.cookie}") == 404


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/answer", {"item": 0, "question": "overall", "value": 6}),
        ("/answer", {"item": 0, "question": "overall", "value": 0}),
        ("/answer", {"item": 0, "question": "overall", "value": "3"}),
        ("/answer", {"item": 0, "question": "overall", "value": True}),
        ("/answer", {"item": 0, "question": "overall", "value": 3.0}),
        ("/answer", {"item": 0, "question": "preference", "value": 1}),
        ("/answer", {"item": 12, "question": "overall", "value": 3}),
        ("/answer", {"item": -1, "question": "overall", "value": 3}),
        ("/answer", {"item": 10**30, "question": "overall", "value": 3}),
        ("/answer", {"item": 0, "question": "overall", "value": 3, "rater": "ben"}),
        ("/answer", {"item": 0}),
        ("/answer", [1]),
        ("/undo", {"answer": 1}),
        ("/undo", {"answer": 10**30}),
    ],
)
def test_what_is_no_answer_is_refused_and_not_kept(anna, rating, path, content):
    assert anna.post(path, content).status == 422
    assert rating.store.answers("anna", "scores") == {}


def test_a_body_that_is_no_json_or_too_large_is_refused(anna):
    headers = {**anna.headers, "Content-Type": "application/json"}
    assert anna.send("POST", "/answer", headers, b"{").status == 422
    assert anna.send("POST", "/answer", headers, b"[" * LARGEST_BODY).status in (400, 422)
    assert anna.send("POST", "/answer", headers, b" " * (LARGEST_BODY + 1)).status == 413
    chunk = b"%x\r\n%s\r\n" % (LARGEST_BODY + 1, b" " * (LARGEST_BODY + 1))
    with socket.create_connection(("127.0.0.1", int(anna.address.split(":")[1]))) as plain:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        plain.sendall(f"POST /answer HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)
        assert plain.recv(64).startswith(b"HTTP/1.1 413")


def test_every_answer_of_the_server_says_what_a_browser_may_do_with_it(anna):
    refused = anna.send("GET", "/", {"Host": "evil.example"})
    assert refused.status == 403
    for reply in (refused, anna.get("/"), anna.get("/nothing"), anna.get("/script.js")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"
        assert "server" not in reply.headers


def test_what_is_not_kept_is_not_thanked_for_and_the_terminal_hears_of_it(directory):
    notices: list[str] = []
    with open_rating(directory, "anna", port=0) as rating, raters.served(rating, notices):
        anna = raters.Client(rating.links["anna"])
        number = anna.get("/state").json["item"]["number"]
        (pages,) = rating.store._connection.execute("PRAGMA page_count").fetchone()
        rating.store._connection.execute(f"PRAGMA max_page_count = {pages}")
        statuses = {anna.answer(number, "overall", 1 + n % 5).status for n in range(400)}
        assert statuses == {200, 507}
        last = anna.answer(number, "overall", 3)
        assert last.json == {"problem": "the computer that serves this page cannot write"}
        assert "NOT SAVED, an answer of anna" in notices[-1]
        assert "the disk is full" in notices[-1]
        rating.store._connection.execute("PRAGMA max_page_count = 100000")
        assert anna.answer(number, "overall", 3).status == 200
        assert rating.store.answers("anna", "scores")[number, "overall"] == 3
        anna.close()


def test_a_pair_is_kept_by_what_was_shown_on_which_side(directory):
    with raters.rated(directory, "anna,ben,carla,dora", mode="pairs") as rating:
        shown_first = set()
        for name, link in rating.links.items():
            client = raters.Client(link)
            while (item := client.get("/state").json["item"]) is not None:
                first, second = (one.text for one in rating.study.items[item["number"]].responses)
                assert set(item["responses"]) == {first, second}
                shown_first.add(item["responses"][0] == first)
                # Everybody prefers the longer text, wherever it stands.
                value = 1 if len(item["responses"][0]) > len(item["responses"][1]) else -1
                kept = client.answer(item["number"], "preference", value)
                assert kept.status == 200
                expected = 1 if len(first) > len(second) else -1
                assert rating.store.answers(name, "pairs")[item["number"], "preference"] == expected
            client.close()
        assert shown_first == {True, False}


def test_what_is_hidden_in_a_text_is_written_out():
    assert shown("a\u202eb\ud83d\0\x1b[31m\u2028é\tz\r\n עברית 😀") == (
        "a[U+202E]b[U+D83D][U+0000][U+001B][31m[U+2028]é\tz\n עברית 😀"
    )


def test_texts_that_are_no_unicode_reach_the_page_and_come_back_to_the_byte(tmp_path):
    place = tmp_path / "one" / "seed-0"
    place.mkdir(parents=True)
    row = {"prompt": "half \ud83d", "response": "\u202e\0 <script>alert(1)</script>"}
    (place / "responses.jsonl").write_text(json.dumps(row) + "\n")
    with raters.rated(tmp_path) as rating:
        anna = raters.Client(rating.links["anna"])
        item = anna.get("/state").json["item"]
        assert item["prompt"] == "half [U+D83D]"
        assert item["responses"] == ["[U+202E][U+0000] <script>alert(1)</script>"]
        assert rating.store.study("scores").items[0].prompt == row["prompt"]
        assert rating.store.study("scores").items[0].responses[0].text == row["response"]
        anna.close()
