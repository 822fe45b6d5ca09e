"""`cagsr report --watch`: to this machine only, read only, anew when the run has moved on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import expect

import made_runs
from browser import browser, installed
from cagsr.errors import InputError
from cagsr.report.serve import Live, server


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


@contextmanager
def served(run: Path) -> Iterator[int]:
    with server(Live([run]), 0) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield serving.server_port
        finally:
            serving.shutdown()
            thread.join()


def ask(port: int, path: str = "/", method: str = "GET", host: str | None = None) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name in [f"127.0.0.1:{port}"] if host is None else host.split("|"):
        if name:
            connection.putheader("Host", name)
    connection.endheaders()
    response = connection.getresponse()
    answer = Answer(response.status, dict(response.getheaders()), response.read().decode())
    connection.close()
    return answer


def test_the_page_is_served_and_asks_nobody_but_its_server(tmp_path):
    with served(made_runs.make_run(tmp_path / "run")) as port:
        answer = ask(port)
        assert ask(port, host=f"localhost:{port}").status == 200
    assert answer.status == 200
    assert "connect-src &#39;self&#39;" in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert not (tmp_path / "run" / "report.html").exists()


HOSTS = ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}"]
HOSTS += ["", "[::1]:{port}", "127.0.0.1:{port}|evil.example", "0.0.0.0:{port}"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_request_by_another_name_is_refused(tmp_path, host):
    with served(made_runs.make_run(tmp_path)) as port:
        for path in ("/", "/changed", "/run.json"):
            answer = ask(port, path, host=host.format(port=port))
            assert (answer.status, "7f3a" in answer.text) == (403, False)


@pytest.mark.parametrize("path", ["/run.json", "/../run.json", "/report.html", "/?x", "/%2e%2e/run.json"])
def test_there_is_nothing_else_to_read(tmp_path, path):
    with served(made_runs.make_run(tmp_path)) as port:
        assert ask(port, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_it_only_reads(tmp_path, method):
    with served(made_runs.make_run(tmp_path)) as port:
        assert ask(port, method=method).status == 501


def test_a_run_that_moves_on_has_another_page(tmp_path):
    run = made_runs.make_run(tmp_path)
    (run / "summary.json").unlink()
    with served(run) as port:
        before, state = ask(port), ask(port, "/changed")
        assert ask(port, "/changed").text == state.text
        made_runs.write(run / "metrics.jsonl", made_runs.metrics(steps=9))
        after = ask(port)
        assert ask(port, "/changed").text != state.text
    assert ("at step 3 of 3" in before.text, "at step 9 of 3" in after.text) == (True, True)


def test_a_run_that_is_moved_away_is_said(tmp_path):
    run = made_runs.make_run(tmp_path / "run")
    with served(run) as port:
        run.rename(tmp_path / "elsewhere")
        answer = ask(port)
    assert answer.status == 503
    assert "holds no run" in answer.text


def test_it_listens_on_the_loopback_address_only(tmp_path):
    with server(Live([made_runs.make_run(tmp_path)]), 0) as serving:
        assert serving.server_address[0] == "127.0.0.1"


def test_a_wrong_run_and_a_taken_port_are_said_before_anything_is_served(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Live([tmp_path])
    run = made_runs.make_run(tmp_path / "run")
    with served(run) as port, pytest.raises(InputError, match=f"--port {port} cannot be used"):
        server(Live([run]), port)


@pytest.mark.skipif(installed() is None, reason="no Chromium here to open the page in")
def test_an_open_page_follows_its_run_and_keeps_what_was_chosen(tmp_path):
    run = made_runs.make_run(tmp_path / "run")
    (run / "summary.json").unlink()
    with served(run) as port, browser() as started:
        page = started.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator(".facts").first).to_contain_text("at step 3 of 3")
        page.locator("#browse-order").select_option("early")
        page.evaluate("document.activeElement.blur()")
        expect(page.locator("#browse-list .where").first).to_contain_text("step 1")
        made_runs.write(run / "metrics.jsonl", made_runs.metrics(steps=9))
        expect(page.locator(".facts").first).to_contain_text("at step 9 of 3", timeout=15_000)
        expect(page.locator("#browse-order")).to_have_value("early")
        expect(page.locator("#browse-list .where").first).to_contain_text("step 1")
        assert said == []


@pytest.mark.skipif(installed() is None, reason="no Chromium here to open the page in")
def test_a_page_under_a_reader_s_hand_stays(tmp_path):
    run = made_runs.make_run(tmp_path / "run")
    with served(run) as port, browser() as started:
        page = started.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#live")).to_have_text("live")
        page.locator("#browse-search").focus()
        made_runs.write(run / "metrics.jsonl", made_runs.metrics(steps=9))
        expect(page.locator("#live")).to_have_text("new rows", timeout=15_000)
        expect(page.locator(".facts").first).to_contain_text("finished, 3 steps")
