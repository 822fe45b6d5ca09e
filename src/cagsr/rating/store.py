"""The ratings database: one SQLite file in the run directory, which keeps every answer that was acknowledged.

    study    what is asked in a mode, chosen once: its seed and its items
    token    who may rate: SHA-256 of a link's token, never the token
    history  every answer and every undo, only ever added to
    answer   what holds now: one value a rater, item and question
    export   SHA-256 of every file that an export wrote

The write-ahead log is synced before a commit returns (``synchronous=FULL``), and nothing is acknowledged before.
Texts are kept as JSON in ASCII, so that any of them comes back to the byte.
"""

import hashlib
import hmac
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cagsr.errors import InputError, StorageError
from cagsr.rating.items import Item, Mode, from_json, to_json

__all__ = ["Store", "Study"]

# "cagr" in the header of an SQLite file marks it as a ratings database.
APPLICATION = 0x63616772
# Another process may be writing; seconds to wait for it.
PATIENCE = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS study (mode TEXT PRIMARY KEY, options TEXT NOT NULL, items TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS token (digest TEXT PRIMARY KEY, rater TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    rater TEXT NOT NULL, mode TEXT NOT NULL, item INTEGER NOT NULL, question TEXT NOT NULL,
    value INTEGER,
    undoes INTEGER UNIQUE REFERENCES history (sequence),
    at TEXT NOT NULL,
    CHECK ((value IS NULL) = (undoes IS NOT NULL))
);
CREATE INDEX IF NOT EXISTS history_of_a_rater ON history (rater, mode, sequence);
CREATE TRIGGER IF NOT EXISTS history_is_not_changed BEFORE UPDATE ON history
    BEGIN SELECT RAISE(ABORT, 'history is only added to'); END;
CREATE TRIGGER IF NOT EXISTS history_is_not_deleted BEFORE DELETE ON history
    BEGIN SELECT RAISE(ABORT, 'history is only added to'); END;
CREATE TABLE IF NOT EXISTS answer (
    rater TEXT NOT NULL, mode TEXT NOT NULL, item INTEGER NOT NULL, question TEXT NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (rater, mode, item, question)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS export (digest TEXT PRIMARY KEY);
"""
# Rows of history that are answers and were not taken back.
STANDING = (
    "value IS NOT NULL AND NOT EXISTS (SELECT 1 FROM history AS later WHERE later.undoes = history.sequence)"
)
KEY = "rater = ? AND mode = ? AND item = ? AND question = ?"


@dataclass(frozen=True)
class Study:
    """A study: what is asked in one mode. ``options`` are those that the items were chosen with."""

    mode: Mode
    options: Mapping[str, Any]
    items: Sequence[Item]

    @property
    def seed(self) -> int:
        return self.options["seed"]


class Store:
    """An open ratings database. Every method may be called from any thread; each write is one transaction."""

    def __init__(self, path: Path, *, create: bool = False):
        """Open a database. Raises InputError where there is none (unless ``create``) or another file; StorageError."""
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise InputError(f"{path} is no file but a link or a directory; move it away.")
        if not create and not path.exists():
            raise InputError(f"{path} is missing: nobody has rated here yet. Start with --raters NAME,NAME.")
        self.path = path
        self._lock = threading.Lock()
        with self._guarded():
            self._connection = sqlite3.connect(
                path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
        try:
            with self._guarded():
                self._prepare()
                self._tokens = self._connection.execute("SELECT digest, rater FROM token").fetchall()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # Studies -----------------------------------------------------------------------------------------------------

    def study(self, mode: Mode) -> Study | None:
        found = self._read("SELECT options, items FROM study WHERE mode = ?", mode)
        if not found:
            return None
        options, items = found[0]
        try:
            return Study(mode, json.loads(options), [from_json(content) for content in json.loads(items)])
        except (ValueError, KeyError, TypeError):
            raise StorageError(f"{self.path} is damaged: what it asks cannot be read.") from None

    def add_study(self, study: Study) -> None:
        content = json.dumps(dict(study.options)), json.dumps([to_json(item) for item in study.items])
        with self._writing():
            self._connection.execute("INSERT INTO study VALUES (?, ?, ?)", (study.mode, *content))

    # Raters ------------------------------------------------------------------------------------------------------

    def admit(self, rater: str) -> str:
        """A new token for this rater: 256 random bits. Tokens given before stay good, so an open page goes on."""
        token = secrets.token_urlsafe(32)
        with self._writing():
            self._connection.execute("INSERT INTO token VALUES (?, ?)", (_digest(token), rater))
        self._tokens.append((_digest(token), rater))
        return token

    def rater_of(self, token: str) -> str | None:
        """The rater of a token, None for an unknown one. All are compared, in a time that reveals nothing of them."""
        asked, found = _digest(token), None
        for digest, rater in self._tokens:
            if hmac.compare_digest(digest, asked):
                found = rater
        return found

    def raters(self) -> list[str]:
        return [name for (name,) in self._read("SELECT DISTINCT rater FROM token ORDER BY rater")]

    # Answers -----------------------------------------------------------------------------------------------------

    def answers(self, rater: str, mode: Mode) -> dict[tuple[int, str], int]:
        """Current answers: (item, question) -> value."""
        asked = "SELECT item, question, value FROM answer WHERE rater = ? AND mode = ?"
        return {(item, question): value for item, question, value in self._read(asked, rater, mode)}

    def answer(self, rater: str, mode: Mode, item: int, question: str, value: int) -> None:
        """Store one answer; it is safe on the disk when this returns. The same answer again changes nothing.

        Raises StorageError when it was not kept.
        """
        key = (rater, mode, item, question)
        with self._writing():
            held = self._connection.execute(f"SELECT value FROM answer WHERE {KEY}", key).fetchone()
            if held != (value,):
                self._connection.execute(
                    "INSERT INTO history (rater, mode, item, question, value, at) VALUES (?, ?, ?, ?, ?, ?)",
                    (*key, value, _now()),
                )
                self._set(key, value)

    def last(self, rater: str, mode: Mode) -> int | None:
        """The number of a rater's newest answer that is not undone: the one that an undo takes back."""
        asked = f"SELECT sequence FROM history WHERE rater = ? AND mode = ? AND {STANDING}"
        found = self._read(f"{asked} ORDER BY sequence DESC LIMIT 1", rater, mode)
        return found[0][0] if found else None

    def undo(self, rater: str, mode: Mode, sequence: int) -> bool:
        """Take back one answer of this rater by a row of its own; the value before it then holds again.

        The same undo again changes nothing. False where this rater gave no such answer. Raises StorageError.
        """
        with self._writing():
            found = self._connection.execute(
                "SELECT item, question FROM history"
                " WHERE sequence = ? AND rater = ? AND mode = ? AND value IS NOT NULL",
                (sequence, rater, mode),
            ).fetchone()
            if found is None:
                return False
            key = (rater, mode, *found)
            self._connection.execute(
                "INSERT OR IGNORE INTO history (rater, mode, item, question, undoes, at) VALUES (?, ?, ?, ?, ?, ?)",
                (*key, sequence, _now()),
            )
            self._set(key, self._standing(key))
        return True

    # Exports -----------------------------------------------------------------------------------------------------

    def exported(self, content: bytes) -> bool:
        """Whether an export of this database wrote just this content before."""
        digest = hashlib.sha256(content).hexdigest()
        return bool(self._read("SELECT 1 FROM export WHERE digest = ?", digest))

    def add_export(self, content: bytes) -> None:
        with self._writing():
            digest = hashlib.sha256(content).hexdigest()
            self._connection.execute("INSERT OR IGNORE INTO export VALUES (?)", (digest,))

    # SQLite ------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        # A file that came from elsewhere may hold triggers of its own: they get no function with an effect.
        self._connection.execute("PRAGMA trusted_schema = OFF")
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != APPLICATION and (application or tables):
            raise InputError(f"{self.path} is the database of another program; move it away.")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if not tables:
            # In one transaction with the mark, so that a kill leaves all of it or nothing.
            mark = f"PRAGMA application_id = {APPLICATION};"
            self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {mark} COMMIT;")

    def _standing(self, key: tuple[str, str, int, str]) -> int | None:
        found = self._connection.execute(
            f"SELECT value FROM history WHERE {KEY} AND {STANDING} ORDER BY sequence DESC LIMIT 1", key
        ).fetchone()
        return found[0] if found else None

    def _set(self, key: tuple[str, str, int, str], value: int | None) -> None:
        if value is None:
            self._connection.execute(f"DELETE FROM answer WHERE {KEY}", key)
        else:
            self._connection.execute("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?)", (*key, value))

    def _read(self, statement: str, *values: Any) -> list[Any]:
        with self._lock, self._guarded():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: committed when the block ends, rolled back when it, or the disk, fails."""
        with self._lock, self._guarded():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL:
                mend = "the disk is full; free some space, then try again"
            elif code == sqlite3.SQLITE_NOTADB:
                raise InputError(f"{self.path} is no ratings database; move it away.") from error
            else:
                mend = str(error)
            raise StorageError(f"{self.path} cannot be used: {mend}") from error


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
