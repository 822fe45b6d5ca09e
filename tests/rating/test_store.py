"""Answers are kept once, taken back by rows, and never gone without a word."""

import shutil
import sqlite3
import subprocess
import sys

import pytest

from cagsr.errors import InputError, StorageError
from cagsr.rating.items import Item
from cagsr.rating.items_source import Response
from cagsr.rating.store import Store, Study

STUDY = Study("scores", {"seed": 0}, [Item("p\ud800", (Response("r\0", ("one",)),))])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ratings.sqlite"


@pytest.fixture
def store(path):
    opened = Store(path, create=True)
    yield opened
    opened.close()


def history(path):
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT sequence, item, question, value, undoes FROM history").fetchall()
    connection.close()
    return found


def test_the_log_is_written_ahead_and_synced_at_every_commit(store):
    pragma = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    }
    assert pragma == {"journal_mode": "wal", "synchronous": 2}


def test_what_was_answered_is_there_when_it_is_opened_again(store, path):
    store.add_study(STUDY)
    store.answer("anna", "scores", 0, "overall", 4)
    store.close()
    again = Store(path)
    assert again.answers("anna", "scores") == {(0, "overall"): 4}
    assert again.answers("ben", "scores") == {}
    assert again.study("scores") == STUDY
    assert again.study("pairs") is None
    again.close()


def test_the_same_answer_again_changes_nothing_and_another_replaces_it(store, path):
    for value in (4, 4, 2, 2):
        store.answer("anna", "scores", 0, "overall", value)
    assert store.answers("anna", "scores") == {(0, "overall"): 2}
    assert history(path) == [(1, 0, "overall", 4, None), (2, 0, "overall", 2, None)]


def test_an_undo_is_a_row_and_brings_back_what_held_before(store, path):
    store.answer("anna", "scores", 0, "overall", 4)
    store.answer("anna", "scores", 0, "overall", 2)
    assert store.undo("anna", "scores", 2)
    assert store.answers("anna", "scores") == {(0, "overall"): 4}
    assert store.undo("anna", "scores", store.last("anna", "scores"))
    assert store.answers("anna", "scores") == {}
    assert store.last("anna", "scores") is None
    assert [row[3:] for row in history(path)] == [(4, None), (2, None), (None, 2), (None, 1)]


def test_an_undo_asked_for_twice_takes_back_one_answer(store):
    for item in (0, 1):
        store.answer("anna", "scores", item, "overall", 5)
    assert store.undo("anna", "scores", 2)
    assert store.undo("anna", "scores", 2)
    assert store.answers("anna", "scores") == {(0, "overall"): 5}


def test_nobody_takes_back_anothers_answer_or_an_undo(store):
    store.answer("anna", "scores", 0, "overall", 5)
    assert not store.undo("ben", "scores", 1)
    assert not store.undo("anna", "pairs", 1)
    assert store.undo("anna", "scores", 1)
    assert not store.undo("anna", "scores", 2)
    assert not store.undo("anna", "scores", 99)


def test_history_is_only_added_to(store):
    store.answer("anna", "scores", 0, "overall", 5)
    for statement in ("DELETE FROM history", "UPDATE history SET value = 1"):
        with pytest.raises(sqlite3.IntegrityError, match="only added to"):
            store._connection.execute(statement)


def test_a_token_is_its_raters_after_a_restart_too_and_is_not_in_the_file(store, path):
    tokens = {name: store.admit(name) for name in ("anna", "ben")}
    store.close()
    again = Store(path)
    newer = again.admit("anna")
    assert {name: again.rater_of(token) for name, token in tokens.items()} == {"anna": "anna", "ben": "ben"}
    assert again.rater_of(newer) == "anna"
    assert again.rater_of(newer[:-1]) is None
    assert again.rater_of("\ud800") is None
    assert again.raters() == ["anna", "ben"]
    again.close()
    assert not any(token.encode() in path.read_bytes() for token in (*tokens.values(), newer))


def test_two_processes_may_write_at_once(store, path):
    code = (
        "import sys, pathlib; from cagsr.rating.store import Store; store = Store(pathlib.Path(sys.argv[1]))\n"
        "for item in range(100): store.answer(sys.argv[2], 'scores', item, 'overall', 3)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in ("anna", "ben")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert {name: len(store.answers(name, "scores")) for name in ("anna", "ben")} == {"anna": 100, "ben": 100}


def test_a_full_disk_is_said_and_costs_nothing_that_was_kept(store, path):
    store.answer("anna", "scores", 0, "overall", 4)
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    kept = iter(range(1, 100_000))
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        all(store.answer("anna", "scores", item, "overall", 4) is None for item in kept)
    failed = next(kept) - 1
    assert len(store.answers("anna", "scores")) == failed > 1
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.answer("anna", "scores", failed, "overall", 4)
    store.close()
    again = Store(path)
    assert len(again.answers("anna", "scores")) == failed + 1
    again.close()


def test_a_damaged_database_is_said(store, path):
    for item in range(500):
        store.answer("anna", "scores", item, "overall", 4)
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(StorageError, match="cannot be used: database disk image is malformed"):
        Store(path)


def test_items_that_cannot_be_read_are_said(store, path):
    store.add_study(STUDY)
    store._connection.execute("UPDATE study SET items = '[{}]'")
    with pytest.raises(StorageError, match="is damaged: what it asks cannot be read"):
        store.study("scores")


def test_another_file_is_refused_and_stays_as_it_was(tmp_path, path):
    path.write_text("no database at all, but long enough to be read as the header of one" * 9)
    with pytest.raises(InputError, match="is no ratings database; move it away"):
        Store(path, create=True)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE theirs (content)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(InputError, match="of another program"):
        Store(other, create=True)
    assert other.read_bytes() == before
    shutil.move(other, path)
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    for place in (link, tmp_path):
        with pytest.raises(InputError, match="no file but a link or a directory"):
            Store(place, create=True)
    with pytest.raises(InputError, match="nobody has rated here yet"):
        Store(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()
