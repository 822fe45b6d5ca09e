"""The proofs of promises 13 and 14 at a small count, and that each of them can fail."""

import sqlite3
from collections import Counter
from contextlib import closing
from random import Random

import pytest

import closed_page
import ratings_kept
from cagsr.rating.security import Guards
from cagsr.rating.store import Store


def proven(proof, count: int) -> tuple[list[str], Counter[str]]:
    """The failures of a proof, which advanced once an item, and the numbers that it told."""
    told: list[dict[str, float]] = []
    failures = proof.prove(count, Random(5), lambda **sums: told.append(sums))
    assert len(told) == min(count, proof.COUNT)
    total: Counter[str] = Counter()
    for sums in told:
        total.update(sums)
    return failures, total


def test_the_page_is_closed_to_other_sites():
    assert closed_page.COUNT == 7 * 8 * 12
    assert proven(closed_page, closed_page.COUNT)[0] == []


@pytest.mark.parametrize("case", closed_page.CASES)
def test_a_guard_that_is_gone_is_found(case: str, monkeypatch: pytest.MonkeyPatch):
    """Each case is hostile in one thing only: without the guard against it, it gets in."""
    foreign = Guards._foreign
    if "token" in case:
        monkeypatch.setattr(Guards, "_rater", lambda *_: "anna")
    elif "Host" in case:
        monkeypatch.setattr(Guards, "_foreign", lambda *_: "")
    else:
        header = "origin" if "Origin" in case else "sec-fetch-site"

        def lenient(self: Guards, headers, method: str) -> str:
            kept = [(name, value) for name, value in headers.raw if name.decode() != header]
            own = f"http://{headers['host']}" if header == "origin" else "same-origin"
            return foreign(self, type(headers)(raw=[*kept, (header.encode(), own.encode())]), method)

        monkeypatch.setattr(Guards, "_foreign", lenient)
    monkeypatch.setattr(closed_page, "ITEMS", tuple(item for item in closed_page.ITEMS if item[2] == case))
    monkeypatch.setattr(closed_page, "COUNT", len(closed_page.ITEMS))
    failures, _ = proven(closed_page, closed_page.COUNT)
    assert f"GET /state, {case}: 200" in failures
    assert any(failure.startswith("POST /answer, ") for failure in failures)
    assert "something was kept of what was refused" in failures


def test_a_page_that_is_closed_to_its_raters_too_proves_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Store, "rater_of", lambda *_: None)
    assert "/state answers a rater with {403}" in proven(closed_page, 3)[0]


def test_no_rating_is_lost():
    failures, total = proven(ratings_kept, 400)
    assert failures == []
    assert total["kills"] == 2
    assert ratings_kept.figures(total) == "2 kills"


@pytest.fixture
def database(tmp_path):
    """Of Anna's three acknowledged answers one was taken back and one given again."""
    path = tmp_path / "ratings.sqlite"
    store = Store(path, create=True)
    store.answer("anna", "scores", 0, "overall", 4)
    store.answer("anna", "scores", 1, "overall", 2)
    store.answer("anna", "scores", 0, "overall", 5)
    store.answer("anna", "scores", 2, "overall", 1)
    store.undo("anna", "scores", 4)
    store.close()
    return path


KEPT = {"anna": {(0, "overall"): 5, (1, "overall"): 2}}


def test_a_database_with_every_acknowledged_answer_once_has_no_problem(database):
    assert ratings_kept.problems(database, KEPT) == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM answer WHERE item = 1", "acknowledged 2, in answer None"),
        ("UPDATE answer SET value = 3 WHERE item = 1", "acknowledged 2, in answer 3"),
        ("INSERT INTO answer VALUES ('anna', 'scores', 7, 'overall', 1)", "acknowledged None, in answer 1"),
        ("DELETE FROM history WHERE item = 1", "acknowledged 2, in history None"),
    ],
)
def test_an_answer_that_is_gone_or_other_is_found(database, statement: str, problem: str):
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DROP TRIGGER history_is_not_deleted")
        connection.execute(statement)
    (found,) = ratings_kept.problems(database, KEPT)
    assert found.endswith(problem)


def test_an_answer_that_is_thanked_for_before_it_is_kept_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """The proof with a server whose commits are still waiting in memory when it is killed."""
    careless = (
        "import sys, atexit; from cagsr.cli import main as cli; from cagsr.rating import store\n"
        "keep, waiting = store.Store.answer, {}\n"
        "def later(self, *given):\n"
        "    waiting[given[:4]] = given[4]\n"
        "    for key in list(waiting)[:-3]: keep(self, *key, waiting.pop(key))\n"
        "store.Store.answer = later\n"
        "cli.main()"
    )
    program = tmp_path / "careless"
    program.write_text(f"#!/bin/sh\nshift 2\nexec {ratings_kept.sys.executable} -c '{careless}' \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setattr(ratings_kept.sys, "executable", str(program))
    monkeypatch.setattr(ratings_kept, "UNDONE_EVERY", 10**9)
    failures, _ = proven(ratings_kept, 60)
    assert any("in answer None" in failure for failure in failures)
