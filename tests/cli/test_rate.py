"""`cagsr rate` from the outside: links, refusals, Ctrl-C, a full disk, and what compare makes of the ratings."""

import json
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest

import raters
from cagsr.rating.session import _hosts


@pytest.fixture
def directory(tmp_path):
    return raters.comparison(tmp_path / "comparison", 9)


@contextmanager
def running(directory, *arguments, **options):
    """The command in a process of its own, and the links that it printed."""
    command = [sys.executable, "-m", "cagsr", "rate", str(directory), "--port", "0", "--json", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_ctrl_c_ends_with_a_plain_message_and_the_same_command_goes_on(directory):
    with running(directory, "--raters", "anna,ben") as (process, links):
        assert list(links) == ["anna", "ben"]
        with raters.Client(links["anna"]) as anna:
            assert anna.answer(0, "overall", 4).status == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
    lines = errors.strip().splitlines()
    assert lines[0] == "18 responses and 2 attention checks, blind and shuffled for each rater"
    assert lines[-1] == (
        f"stopped by Ctrl-C; 1 answers are in {directory / 'ratings.sqlite'}; the same command goes on"
    )
    assert "Traceback" not in errors
    with running(directory, "--raters", "anna,ben") as (_, links), raters.Client(links["anna"]) as anna:
        assert anna.get("/state").json["last"] == 1


def test_a_full_disk_is_said_to_the_rater_and_at_the_terminal_and_costs_nothing(directory):
    def limit():
        # What has room now has none for long: the log grows by a few pages an answer.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    with running(directory, "--raters", "anna", preexec_fn=limit) as (process, links):
        kept, status = 0, 200
        with raters.Client(links["anna"]) as anna:
            while status == 200:
                status = anna.answer(kept % 18, "overall", 1 + kept // 18 % 5).status
                kept += status == 200
        assert status == 507
        assert kept > 5
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert errors.count("NOT SAVED, an answer of anna:") == 1
    assert "Traceback" not in errors
    with sqlite3.connect(directory / "ratings.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM history").fetchone() == (kept,)
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs --raters NAME,NAME"),
        (("--raters", "anna,,ben"), "'' is no name"),
        (("--raters", "anna,anna"), "a name is given twice"),
        (("--raters", "an\nna"), r"'an\nna' is no name"),
        (("--raters", "a" * 41), "is no name; give 1 to 40 printable characters"),
        (("--raters", "anna", "--host", "0.0.0.0"), "every address at once; name the one"),
        (("--raters", "anna", "--host", "0.0.0.0", "--open-to-network"), "every address at once"),
        (("--raters", "anna", "--host", "192.0.2.7"), "nothing is encrypted"),
        (("--raters", "anna", "--host", "192.0.2.7", "--open-to-network", "--port", "0"), "cannot be used"),
        (("--raters", "anna", "--systems", "tunde"), "no 'tunde'; did you mean 'tuned'"),
        (("--raters", "anna", "--systems", "base", "--mode", "pairs"), "two responses that differ"),
        (("--export",), "nobody has rated here yet"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_behind(cagsr, directory, arguments, message):
    before = sorted(directory.rglob("*"))
    outcome = cagsr("rate", directory, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert sorted(directory.rglob("*")) == before


def test_a_directory_without_responses_is_refused(cagsr, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has nothing to rate" in cagsr("rate", "empty", "--raters", "anna").err
    assert "RUN: none is no directory" in cagsr("rate", "none", "--raters", "anna").err


def test_a_port_in_use_is_named(cagsr, directory):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = cagsr("rate", directory, "--raters", "anna", "--port", port)
    assert outcome.code == 2
    assert f"127.0.0.1 port {port} cannot be used" in outcome.err
    assert "--port" in outcome.err


@pytest.mark.parametrize(
    ("host", "port", "hosts"),
    [
        ("127.0.0.1", 8765, ("127.0.0.1:8765", "localhost:8765")),
        ("localhost", 8765, ("localhost:8765", "127.0.0.1:8765")),
        ("::1", 8765, ("[::1]:8765",)),
        ("127.0.0.2", 80, ("127.0.0.2:80", "127.0.0.2")),
        ("Box.lan", 8765, ("box.lan:8765",)),
    ],
)
def test_only_its_own_addresses_are_answered_at(host, port, hosts):
    assert _hosts(host, port) == hosts


def test_who_opens_it_to_a_network_is_told_what_that_means(directory):
    with raters.rated(directory, "anna") as rating:
        assert not any("encrypted" in line for line in rating.announcement())
        assert "nothing is encrypted" in replace(rating, open_to_network=True).announcement()[-1]


def test_no_answer_waits_for_the_network_to_say_that_it_got_the_last_one(directory):
    with raters.rated(directory, "anna") as rating:
        assert rating.listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_was_chosen_the_first_time_stays(cagsr, directory):
    with raters.rated(directory, "anna", items=10):
        pass
    for option, value in (("--items", 12), ("--seed", 1), ("--systems", "base")):
        outcome = cagsr("rate", directory, "--raters", "anna", option, value)
        assert outcome.code == 2
        assert f"asks with {option} " in outcome.err
    with raters.rated(directory, "anna", items=10) as again:
        assert len(again.study.items) == 12


def test_missing_packages_are_named_with_what_installs_them(cagsr, directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "cagsr.rating.server", None)
    monkeypatch.setitem(sys.modules, "cagsr.rating.export", None)
    for arguments in (("--raters", "anna"), ("--export",)):
        outcome = cagsr("rate", directory, *arguments)
        assert outcome.code == 2
        assert "pip install fastapi uvicorn krippendorff" in outcome.err


def test_the_table_shows_means_agreement_and_how_careful_each_was(cagsr, directory):
    with raters.rated(directory, "anna,[b]ben") as rating:
        for name in rating.links:
            for number, item in enumerate(rating.study.items):
                tuned = "tuned" in item.responses[0].systems
                for question in ("relevance", "coherence", "overall"):
                    value = 1 if item.check == "foreign" else 5 if tuned else 2 + number % 2
                    rating.store.answer(name, "scores", number, question, value)
    outcome = cagsr("rate", directory, "--export")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "mean rating, 1 to 5, and 95 % interval" in lines[0]
    assert any(line.split()[:2] == ["tuned", "5.00"] for line in lines)
    assert "agreement on overall: Krippendorff's alpha 1.00 over 18 items" in outcome.out
    assert "anna: 20 of 20 rated; 1 of 1 foreign responses seen through; 1 of 1 items" in outcome.out
    assert "[b]ben: 20 of 20" in outcome.out
    assert f"written: {directory / 'pairs.jsonl'}" in outcome.out
    summary = json.loads(cagsr("rate", directory, "--export", "--json").out)
    assert summary["systems"]["scores"]["tuned"]["overall"]["mean"] == 5.0


def test_ratings_of_a_comparison_become_its_column_without_training_again(cagsr, models, small, tmp_path):
    given = ["compare", *small, "data.task=slots", "compare.systems=[no-rl,lexical]", "compare.seeds=[0,1]"]
    given += [f"model.name={models / 't5'}", "compare.directory=comparison"]
    first = cagsr(*given)
    assert first.code == 0, first.err
    directory = tmp_path / "comparison"
    kept = {path: path.stat().st_mtime_ns for path in directory.glob("*/seed-*/*")}
    with raters.rated(directory, "anna,ben") as rating:
        for name, value in (("anna", 2), ("ben", 3)):
            for number, item in enumerate(rating.study.items):
                for question in ("relevance", "coherence", "overall"):
                    better = "lexical" in item.responses[0].systems
                    rating.store.answer(name, "scores", number, question, value + better)
    assert cagsr("rate", "comparison", "--export").code == 0
    again = cagsr(*given, "metrics.ratings=comparison/ratings.jsonl", "--resume", "--json")
    assert again.code == 0, again.err
    summary = json.loads(again.out)
    opinions = summary["opinions"]["systems"]
    assert opinions["lexical"]["rating"]["mean"] == 3.5
    # A text that both wrote was rated once and counts for both.
    assert 2.5 <= opinions["no-rl"]["rating"]["mean"] <= 3.5
    assert summary["cost"]["lexical"]["human_ratings"] == 2 * 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "people" in (directory / "table.md").read_text()
    (directory / "lexical/seed-0/responses.jsonl").write_text("")
    damaged = cagsr(*given, "metrics.ratings=comparison/ratings.jsonl", "--resume")
    assert damaged.code == 4
    assert "is damaged (0 responses to 2 prompts); remove result.json beside it" in damaged.err
