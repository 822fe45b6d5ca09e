"""The rating page in a real browser: by keyboard, undone, offline, hostile texts, other sites, accessibility."""

import html
import json
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

import raters
from cagsr.errors import StorageError
from cagsr.rating.items import order
from cagsr.rating.security import Guards
from cagsr.rating.server import Session
from cagsr.rating.session import open_rating

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.base")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
PHONE, WIDE = {"width": 360, "height": 740}, {"width": 1200, "height": 800}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield launched
        launched.close()


@pytest.fixture
def directory(tmp_path):
    return raters.comparison(tmp_path / "comparison", 9)


@pytest.fixture
def visit(browser):
    """``visit(link, **context)``: the page as that rater sees it; in the end it has logged no error, asked nobody
    else and run nothing that it did not bring."""
    contexts: list[Any] = []
    said: list[str] = []
    asked: list[str] = []

    def open_page(link: str, expected: tuple[str, ...] = (), **options: Any):
        context = browser.new_context(**({"viewport": WIDE, "reduced_motion": "reduce"} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(link)
        origin = link.partition("/enter")[0]
        contexts[-1].checks = lambda: (
            [line for line in said if not any(part in line for part in expected)],
            [url for url in asked if not url.startswith((origin, "data:"))],
        )
        return page

    yield open_page
    for context in contexts:
        assert context.checks() == ([], [])
        context.close()


def await_item(page, number: int, count: int) -> None:
    page.locator("#heading", has_text=f"Item {number} of {count}").wait_for(state="attached")


def rate_all(page, count: int, keys) -> None:
    """Press ``keys(n)`` for item after item, each once the page shows it."""
    for number in range(1, count + 1):
        await_item(page, number, count)
        for key in keys(number):
            page.keyboard.press(key)
    expect(page.locator("#thanks")).to_be_focused()


def test_twenty_items_are_rated_by_keyboard_alone(visit, directory):
    with raters.rated(directory, "anna") as rating:
        assert len(rating.study.items) == 20
        page = visit(rating.links["anna"])
        rate_all(page, 20, lambda n: f"{1 + n % 5}{1 + n // 5 % 5}{1 + n % 3}")
        expect(page.locator("#thanks")).to_have_text("All rated. Thank you, anna.")
        expect(page.get_by_role("progressbar", name="Rated so far")).to_have_attribute("value", "20")
        answers = rating.store.answers("anna", "scores")
        assert len(answers) == 60
        order = rater_order(rating, "anna")
        for n, item in enumerate(order, start=1):
            found = [answers[item, question] for question in ("relevance", "coherence", "overall")]
            assert found == [1 + n % 5, 1 + n // 5 % 5, 1 + n % 3]


def rater_order(rating, name: str) -> list[int]:
    return order(rating.study.items, name, rating.study.seed)


def test_twenty_pairs_are_rated_by_keyboard_alone(visit, tmp_path):
    directory = raters.comparison(tmp_path / "comparison", 18)
    with raters.rated(directory, "anna", mode="pairs") as rating:
        assert len(rating.study.items) == 20
        page = visit(rating.links["anna"])
        keys = ["a", "ArrowLeft", "b", "ArrowRight", "n"]
        rate_all(page, 20, lambda n: [keys[n % 5]])
        answers = rating.store.answers("anna", "pairs")
        session = Session(rating.store, rating.study, print)
        numbers = rater_order(rating, "anna")
        shown = [session.value("anna", number, answers[number, "preference"]) for number in numbers]
        assert shown == [(1, 1, -1, -1, 0)[n % 5] for n in range(1, 21)]


def test_buttons_are_reached_by_tab_and_do_what_their_names_say(visit, directory):
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"])
        page.get_by_label("Shortcuts").uncheck()
        page.keyboard.press("3")
        page.locator("#heading").focus()
        for _ in range(2):
            page.keyboard.press("Tab")
        expect(page.locator("[data-question=relevance] [data-value='2']")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#saved")).to_have_text("Saved")
        expect(page.get_by_role("button", name="2", pressed=True)).to_have_count(1)
        page.get_by_role("group", name="Overall").get_by_role("button", name="5, excellent").click()
        expect(page.get_by_role("button", pressed=True)).to_have_count(2)
        number = rater_order(rating, "anna")[0]
        expected = {(number, "relevance"): 2, (number, "overall"): 5}
        # A button is shown as pressed at once, and its answer is kept a moment later.
        for _ in range(100):
            if rating.store.answers("anna", "scores") == expected:
                break
            page.wait_for_timeout(50)
        assert rating.store.answers("anna", "scores") == expected


def test_a_question_is_chosen_by_its_letter_and_changed_before_the_item_is_done(visit, directory):
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"], reduced_motion="no-preference")
        expect(page.locator("#count")).to_have_text("1 of 20")
        for key in ("o", "5", "r", "4", "r", "2"):
            page.keyboard.press(key)
        expect(page.locator("[data-question=relevance] [aria-pressed=true]")).to_have_text("2")
        expect(page.locator(".active")).to_have_attribute("data-question", "coherence")
        page.keyboard.press("3")
        expect(page.locator("#count")).to_have_text("2 of 20")
        number = rater_order(rating, "anna")[0]
        assert rating.store.answers("anna", "scores") == {
            (number, "relevance"): 2,
            (number, "coherence"): 3,
            (number, "overall"): 5,
        }


def test_an_undo_goes_back_answer_by_answer_across_items_and_reloads(visit, directory):
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"])
        expect(page.locator("#count")).to_have_text("1 of 20")
        first = page.locator("#response-0").inner_text()
        expect(page.locator("#undo")).to_be_disabled()
        for key in "345":
            page.keyboard.press(key)
        expect(page.locator("#count")).to_have_text("2 of 20")
        page.reload()
        expect(page.locator("#count")).to_have_text("2 of 20")
        page.keyboard.press("u")
        expect(page.locator("#count")).to_have_text("1 of 20")
        expect(page.locator("#response-0")).to_have_text(first)
        expect(page.get_by_role("button", pressed=True)).to_have_count(2)
        expect(page.locator(".active")).to_have_attribute("data-question", "overall")
        page.keyboard.press("Backspace")
        expect(page.get_by_role("button", pressed=True)).to_have_count(1)
        page.locator("#undo").click()
        expect(page.get_by_role("button", pressed=True)).to_have_count(0)
        assert rating.store.answers("anna", "scores") == {}


def test_what_is_not_saved_is_said_and_sent_again_when_the_server_is_back(visit, directory):
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"], expected=("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE"))
        expect(page.locator("#count")).to_have_text("1 of 20")
        port = rating.listener.getsockname()[1]
    page.keyboard.press("4")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Not saved: the program that serves this page does not answer.")
    expect(page.locator("#again")).to_be_focused()
    page.keyboard.press("5")
    with open_rating(directory, "anna", port=port) as again, raters.served(again):
        page.locator("#again").click()
        expect(page.locator("#saved")).to_have_text("Saved")
        expect(alert).to_be_hidden()
        assert list(again.store.answers("anna", "scores").values()) == [4], (
            "what was typed meanwhile is not kept"
        )


def test_a_full_disk_is_said_on_the_page_and_nothing_moves_on(visit, directory):
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"], expected=("507",))
        expect(page.locator("#count")).to_have_text("1 of 20")
        (pages,) = rating.store._connection.execute("PRAGMA page_count").fetchone()
        rating.store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError):
            all(rating.store.answer("ben", "scores", n, "overall", 1) is None for n in range(10_000))
        page.keyboard.press("4")
        expect(page.get_by_role("alert")).to_contain_text(
            "Not saved: the computer that serves this page cannot write."
        )
        assert rating.store.answers("anna", "scores") == {}
        rating.store._connection.execute("PRAGMA max_page_count = 100000")
        page.locator("#again").click()
        expect(page.locator("#saved")).to_have_text("Saved")
        assert list(rating.store.answers("anna", "scores").values()) == [4]


# Hostile ----------------------------------------------------------------------------------------------------------

PAYLOADS = [
    "<script>console.log('ran')</script>",
    "</div></main><script src='http://127.0.0.1:9/x.js'></script>",
    "<img src=x onerror=\"console.log('ran')\">",
    "<svg onload=console.log('ran')><a xlink:href='javascript:console.log(1)'>x</a></svg>",
    '"><iframe srcdoc="<script>parent.console.log(\'ran\')</script>">',
    "<style>@import 'http://127.0.0.1:9/x.css';*{display:none}</style>",
    "<base href='http://127.0.0.1:9/'><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "{{ ''.__class__ }} {% raw %} ${console.log('ran')} `console.log('ran')`",
    "javascript:console.log('ran')//<!--",
    "<template><form action=//127.0.0.1:9><input name=innerHTML autofocus onfocus=console.log(1)>",
]


@pytest.mark.parametrize("mode", ["scores", "pairs"])
def test_texts_and_names_are_shown_and_never_run(visit, tmp_path, mode):
    for system in PAYLOADS[:2]:
        place = tmp_path / system.replace("/", "%2f") / "seed-0"
        place.mkdir(parents=True)
        rows = [
            {"prompt": f"{n} {text}", "response": text[::-1] if system == PAYLOADS[0] else text}
            for n, text in enumerate(PAYLOADS)
        ]
        (place / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "<img src=x onerror=alert(1)>"
    with raters.rated(tmp_path, name, mode=mode) as rating:
        page = visit(rating.links[name])
        expect(page.locator(".rater")).to_have_text(name)
        total, seen = len(rating.study.items), set()
        for number in range(1, total + 1):
            await_item(page, number, total)
            seen.add(page.locator("#prompt").inner_text().partition(" ")[2])
            assert page.locator("main :is(script, img, svg, iframe, style, form, template, a)").count() == 0
            for key in "444" if mode == "scores" else "a":
                page.keyboard.press(key)
        expect(page.locator("#finished")).to_be_visible()
        assert seen == set(PAYLOADS)
        assert page.locator("body").get_attribute("data-mode") == mode


def test_what_wrote_a_response_is_nowhere_on_the_page(visit, tmp_path):
    directory = raters.comparison(tmp_path / "comparison", 9, ("base", "winner"))
    for path in (directory / "winner").rglob("*.jsonl"):
        path.write_text(path.read_text().replace("winner", "so"))
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"])
        bodies: list[str] = []
        page.on("response", lambda response: bodies.append(response.text()))
        rate_all(page, 20, lambda n: "333")
        assert len(bodies) >= 60
        assert not any("winner" in text or "base" in text for text in [*bodies, page.content()])


ATTACK = """<!doctype html><title>evil</title><p id=done></p>
<iframe src="{own}/"></iframe><img src="{own}/style.css"><script src="{own}/script.js"></script>
<form id=form method=post enctype=text/plain action="{own}/answer" target=frame><input name='{body}' value=''></form>
<iframe name=frame></iframe><script>
const body = {json};
const tries = [];
for (const mode of ["cors", "no-cors"])
  for (const type of ["application/json", "text/plain"])
    tries.push(fetch("{own}/answer", {{method: "POST", mode, body, credentials: "include",
      headers: {{"Content-Type": type}}}}).then(r => r.text()).catch(() => ""));
tries.push(fetch("{own}/state", {{credentials: "include"}}).then(r => r.text()).catch(() => ""));
form.submit();
Promise.all(tries).then(found => done.textContent = "done:" + found.join(""));
</script>"""


@contextmanager
def evil_site(content):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_page_of_another_site_in_the_same_browser_reads_and_changes_nothing(
    browser, directory, monkeypatch
):
    """On another port of this computer: the cookie goes along, and still every door is closed."""
    reasons: list[str] = []
    judge = Guards._foreign
    monkeypatch.setattr(Guards, "_foreign", lambda *given: reasons.append(judge(*given)) or reasons[-1])
    with raters.rated(directory, "anna") as rating:
        link = rating.links["anna"]
        context = browser.new_context()
        page = context.new_page()
        page.goto(link)
        expect(page.locator("#count")).to_have_text("1 of 20")
        body = json.dumps({"item": 0, "question": "overall", "value": 5})
        own = link.partition("/enter")[0]
        attack = ATTACK.format(own=own, json=json.dumps(body), body=html.escape(body, quote=True))
        with evil_site(attack) as evil:
            assert set(reasons) == {""}
            reasons.clear()
            page.goto(evil)
            expect(page.locator("#done")).to_have_text("done:")
            page.wait_for_load_state("networkidle")
        # A frame, an image, a script, a form, two fetches with and two without a preflight, and one to read.
        assert len(reasons) == 9
        assert all(reasons)
        assert rating.store.answers("anna", "scores") == {}
        context.close()


# For everybody ----------------------------------------------------------------------------------------------------


def serious(page) -> list[str]:
    page.evaluate(axe.AXE_SCRIPT)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [f"{one['id']}: {one['help']}" for one in found if one["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("mode", ["scores", "pairs"])
@pytest.mark.parametrize(("scheme", "viewport"), [("dark", PHONE), ("light", WIDE)])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    visit, directory, mode, scheme, viewport
):
    with raters.rated(directory, "anna", mode=mode) as rating:
        page = visit(rating.links["anna"], expected=("CONNECTION",), viewport=viewport, color_scheme=scheme)
        expect(page.locator("#main")).to_be_visible()
        assert serious(page) == []
        page.keyboard.press("4" if mode == "scores" else "b")
        expect(page.locator("#saved")).to_have_text("Saved")
        expect(page.locator("#undo")).to_be_enabled()
        assert serious(page) == []
        wide, shown = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= shown
        for number in range(len(rating.study.items)):
            for question in ("relevance", "coherence", "overall") if mode == "scores" else ("preference",):
                rating.store.answer("anna", mode, number, question, 1)
        page.reload()
        expect(page.locator("#finished")).to_be_visible()
        assert serious(page) == []
    page.keyboard.press("u")
    expect(page.get_by_role("alert")).to_be_visible()
    assert serious(page) == []


def test_axe_would_find_what_is_serious(visit, directory):
    with raters.rated(directory, "anna") as rating:
        page = visit(rating.links["anna"])
        expect(page.locator("#main")).to_be_visible()
        page.evaluate("() => { document.querySelector('#undo').textContent = ''; }")
        assert serious(page) == ["button-name: Buttons must have discernible text"]
