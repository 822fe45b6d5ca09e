"""No rating is lost: many raters write at once while the server is killed, and started, again and again.

The server is the command itself in a process of its own, ended by SIGKILL. A rater writes down what was
acknowledged, sends again what was not, and now and then takes an answer back. In the end every acknowledged answer
must be in the database once, as it was acknowledged, and nothing else may be there.
"""

import http.client
import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import raters
from cagsr.rating.session import DATABASE

TITLE = "no rating is lost"
PROMISE = 14
RATERS, WRITES, KILLS = 50, 1000, 20
COUNT = RATERS * WRITES
SHARDS = False  # all raters share one database
LIMIT = 1800

QUESTIONS = ("relevance", "coherence", "overall")
UNDONE_EVERY = 10
# A server that does not come back is a failure, not a test without an end.
PATIENCE = 120.0

Answers = dict[tuple[int, str], int]


class Rater(threading.Thread):
    """Sends its writes one after the other, each until it is acknowledged; ``kept`` is what must be there."""

    def __init__(self, link: str, writes: int, random: Random, items: int, written: Callable[[], None]):
        super().__init__(daemon=True)
        self.link, self.random, self.written = link, random, written
        self.keys = [(item, question) for item in range(items) for question in QUESTIONS]
        self.writes, self.kept, self.problem = writes, Answers(), ""
        self.acknowledged = Counter[str]()
        self.before: Answers = {}

    def run(self) -> None:
        try:
            client = self._until_answered(lambda: raters.Client(self.link, timeout=10))
            with client:
                for number in range(self.writes):
                    self._write(client, number)
                    self.written()
        except Exception as error:
            self.problem = f"{type(error).__name__}: {error}"

    def _write(self, client: raters.Client, number: int) -> None:
        if number % UNDONE_EVERY == UNDONE_EVERY - 1:
            last = self._until_answered(lambda: _ok(client.get("/state")))["last"]
            self._until_answered(lambda: _ok(client.post("/undo", {"answer": last})))
            self.kept = dict(self.before)
            self.acknowledged["undo"] += 1
            return
        # Mostly new questions, sometimes one that has an answer.
        item, question = self.keys[number] if self.random.random() < 0.9 else self.random.choice(self.keys)
        held = self.kept.get((item, question))
        value = self.random.choice([one for one in range(1, 6) if one != held])
        self._until_answered(lambda: _ok(client.answer(item, question, value)))
        self.before, self.kept = self.kept, self.kept | {(item, question): value}
        self.acknowledged["answer"] += 1

    def _until_answered(self, send: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return send()
            except (OSError, http.client.HTTPException):
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)  # the server is being started


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """What is missing, doubled or never acknowledged after ``count`` writes, and raters who were not answered."""
    number = min(count, COUNT)
    names = [f"rater-{n}" for n in range(max(2, round(RATERS * number / COUNT)))]
    kills = max(2, round(KILLS * number / COUNT))
    shares = [number // len(names) + (n < number % len(names)) for n in range(len(names))]
    # As many writes happen before the first kill, between two, and after the last.
    due = [number * (kill + 1) // (kills + 1) for kill in range(kills)]
    done, killing = Counter[str](), threading.Condition()

    def written() -> None:
        with killing:
            done["writes"] += 1
            advance(kills=done["kills"] - done["told"])
            done["told"] = done["kills"]
            killing.notify()

    with tempfile.TemporaryDirectory() as place:
        items = max(shares) // len(QUESTIONS) + 1
        directory = raters.comparison(Path(place) / "comparison", items, ("tuned",))
        server, links = _start(directory, names, items, 0)
        port = int(links[names[0]].split(":")[2].partition("/")[0])
        people = [
            Rater(links[name], share, Random(random.getrandbits(64)), items, written)
            for name, share in zip(names, shares, strict=True)
        ]
        try:
            for person in people:
                person.start()
            for writes in due:
                with killing:
                    while done["writes"] < writes and any(person.is_alive() for person in people):
                        killing.wait(1)
                _kill(server)
                server, _ = _start(directory, names, items, port)
                with killing:
                    done["kills"] += 1
            for person in people:
                person.join()
        finally:
            _kill(server)
        return [f"{p.link[-8:]}: {p.problem}" for p in people if p.problem] + problems(
            directory / DATABASE, {name: person.kept for name, person in zip(names, people, strict=True)}
        )


def figures(sums: Counter[str]) -> str:
    return f"{sums['kills']:.0f} kills"


def problems(path: Path, expected: dict[str, Answers]) -> list[str]:
    """Rater by rater, the answers that are missing, other, doubled or not expected in the database."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT rater, item, question, value FROM answer").fetchall()
        standing = connection.execute(
            "SELECT rater, item, question, value, sequence FROM history WHERE value IS NOT NULL"
            " AND sequence NOT IN (SELECT undoes FROM history WHERE undoes IS NOT NULL) ORDER BY sequence"
        ).fetchall()
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    found = [] if sound == "ok" else [f"the database is damaged: {sound}"]
    times = Counter((rater, item, question) for rater, item, question, _ in rows)
    held = {(rater, item, question): value for rater, item, question, value in rows}
    newest = {(rater, item, question): value for rater, item, question, value, _ in standing}
    wanted = {(rater, *key): value for rater, answers in expected.items() for key, value in answers.items()}
    for key in wanted.keys() | held.keys() | newest.keys():
        states = {"answer": held.get(key), "history": newest.get(key)}
        for where, value in states.items():
            if value != wanted.get(key):
                found.append(f"{key}: acknowledged {wanted.get(key)}, in {where} {value}")
        if times[key] > 1:
            found.append(f"{key}: there {times[key]} times")
    return found


def _start(
    directory: Path, names: list[str], items: int, port: int
) -> tuple[subprocess.Popen[str], dict[str, str]]:
    command = [sys.executable, "-m", "cagsr", "rate", str(directory), "--json", "--raters", ",".join(names)]
    command += ["--items", str(items), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise RuntimeError(f"the server did not start: {server.communicate()[1]}")
    return server, json.loads(line)


def _kill(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


def _ok(reply: raters.Reply) -> Any:
    if reply.status != 200:
        raise RuntimeError(f"answered {reply.status}: {reply.body.decode()}")
    return reply.json
