"""The written page: inert, complete, and never in the place of another file."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

import made_runs
from cagsr.errors import InputError
from cagsr.report import write_report
from cagsr.report.page import read_runs, render

HOSTILE = "</script><script>alert(1)</script><!-- ]]> \u2028 ' \" {{ 7 * 7 }} \u202e \ud800 &lt;"


class Page(HTMLParser):
    """Elements and the text of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("script", "style") and data.strip():
            self.raw.append((self.elements[-1][1].get("type") or self.elements[-1][0], data))


@pytest.fixture
def hostile(tmp_path):
    """A demo with HOSTILE wherever a run has text."""
    candidates = [made_runs.candidate(HOSTILE, 1.0, prompt=HOSTILE, signals={HOSTILE: 1.0})]
    summary = made_runs.SUMMARY | {"not_for_this_data": {"x": HOSTILE}, "stopped": HOSTILE}
    summary["systems"] = {**made_runs.SUMMARY["systems"], "</script>": made_runs.SUMMARY["systems"]["base"]}
    run = made_runs.make_run(
        tmp_path / "<b>run",
        candidates=candidates,
        summary=summary,
        metrics=[{"step": 1, HOSTILE: 1.0, "warning": HOSTILE}],
        config=f"model: {{name: {json.dumps(HOSTILE)}}}\n# </pre><script>\n",
        run={"id": HOSTILE, "identity": {HOSTILE: HOSTILE}},
    )
    made_runs.write(run / "responses.jsonl", made_runs.responses(HOSTILE, (HOSTILE,), (0.5,)))
    return run


def test_the_policy_allows_the_page_s_own_style_and_script_and_nothing_else(hostile):
    page = Page(write_report([hostile]).read_text())
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in page.raw
    }
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_what_a_run_wrote_is_never_markup(hostile):
    page = Page(write_report([hostile]).read_text())
    assert [kind for kind, _ in page.raw] == ["style", "application/json", "script"]
    assert not any(tag in ("b", "iframe", "img", "object", "base") for tag, _ in page.elements)
    loading = [
        a for _, attributes in page.elements for a in ("src", "srcset", "action", "ping") if a in attributes
    ]
    assert loading == []
    links = {attributes["href"] for _, attributes in page.elements if "href" in attributes}
    assert all(link in ("data:,",) or link.startswith("#") for link in links)


def test_the_data_come_through_to_the_character(hostile):
    page = Page(write_report([hostile]).read_text())
    data = json.loads(dict(page.raw)["application/json"])
    (one,) = data["browse"][0]["groups"][0]["w"]
    seen = HOSTILE.replace("\u202e", "⟨U+202E⟩").replace("\ud800", "⟨U+D800⟩").replace("\u2028", "⟨U+2028⟩")
    assert "".join(one["u"]) == seen
    assert not re.search("[<>&]", dict(page.raw)["application/json"])


def test_everything_is_in_one_file_of_a_sensible_size(tmp_path):
    run = made_runs.make_run(
        tmp_path, candidates=[row for step in range(60) for row in made_runs.group(step) * 8]
    )
    path = write_report([run])
    assert path == run / "report.html"
    assert path.stat().st_size < 1_000_000


def test_an_earlier_report_is_replaced_and_any_other_file_is_not(tmp_path):
    run = made_runs.make_run(tmp_path / "run")
    first = write_report([run])
    before = first.read_text()
    (run / "summary.json").unlink()
    assert write_report([run]).read_text() != before
    mine = tmp_path / "mine.html"
    mine.write_text("<title>thesis</title>")
    with pytest.raises(
        InputError, match=r"mine.html is there already and is no report of cagsr. Name another"
    ):
        write_report([run], mine)
    assert mine.read_text() == "<title>thesis</title>"


def test_several_runs_go_into_the_working_directory_and_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [made_runs.make_run(tmp_path / name / "seed-0") for name in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/seed-0", "b/seed-0"]
    assert write_report(runs).resolve() == tmp_path / "report.html"
    assert write_report(runs, tmp_path / "a").resolve() == tmp_path / "a" / "report.html"


@pytest.mark.parametrize(
    ("count", "output", "message"),
    [
        (0, None, "needs at least one run"),
        (9, None, "at most 8 runs over one another, got 9"),
        (1, "nowhere/report.html", "nowhere is no directory. Create it"),
    ],
)
def test_what_cannot_be_written_is_refused_plainly(tmp_path, monkeypatch, count, output, message):
    monkeypatch.chdir(tmp_path)
    run = made_runs.make_run(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        write_report([run] * count, output)


def test_a_run_that_is_going_on_and_one_that_stopped_say_so(tmp_path):
    going = made_runs.make_run(tmp_path / "a")
    (going / "summary.json").unlink()
    assert "at step 3 of 3" in render(read_runs([going]))
    stopped = made_runs.make_run(tmp_path / "b", summary={"stopped": "kl is 2, above 1"})
    assert "stopped: kl is 2, above 1" in render(read_runs([stopped]))


def test_problems_and_warnings_stand_at_the_top(tmp_path):
    run = made_runs.make_run(tmp_path)
    (run / "candidates.jsonl").write_text("{torn")
    text = render(read_runs([run]))
    assert "candidates.jsonl:1 is damaged or torn; it is left out." in text
    assert "<li>step 2: kl is 2, above 1</li>" in text


def test_an_empty_run_has_a_report(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert "Settings" in write_report([tmp_path]).read_text()


def test_the_report_imports_no_torch():
    code = (
        "import sys, cagsr.report; print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
