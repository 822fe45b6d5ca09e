"""`cagsr rate`: blind rating on a page that is served on this computer, and the export of its results."""

import ipaddress
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from cagsr.errors import InputError
from cagsr.rating.items import Mode, choose
from cagsr.rating.items_source import read_groups
from cagsr.rating.store import Store, Study

__all__ = ["DATABASE", "Rating", "export_ratings", "open_rating"]

DATABASE = "ratings.sqlite"
ITEMS, SEED = 60, 0
LONGEST_NAME = 40
PACKAGES = "packages of the rating page are not installed; pip install fastapi uvicorn krippendorff"


@dataclass(frozen=True)
class Rating:
    """An opened rating: rater -> link, and the address that answers them once `serve` is called.

    Used as a context, at whose end the database and the address are let go.
    """

    store: Store
    study: Study
    links: dict[str, str]
    listener: socket.socket
    hosts: tuple[str, ...]
    open_to_network: bool

    def __enter__(self) -> "Rating":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.store.close()

    def announcement(self) -> list[str]:
        """Instructions for the person who starts a rating, line by line."""
        count = len(self.study.items)
        checks = sum(item.check is not None for item in self.study.items)
        what = "responses" if self.study.mode == "scores" else "pairs"
        wide = max(map(len, self.links))
        lines = [f"{count - checks} {what} and {checks} attention checks, blind and shuffled for each rater"]
        lines += [f"  {name:<{wide}}  {link}" for name, link in self.links.items()]
        lines += [f"Answers are kept in {self.store.path}. Ctrl-C ends; the same command goes on."]
        if self.open_to_network:
            lines += [
                "Open to the network: whoever sees a link can rate with it, and nothing is encrypted. Send each "
                "rater only their own; it opens when it is typed or pasted into the address bar."
            ]
        return lines

    def serve(self, notice: Callable[[str], None]) -> None:
        """Serve raters until Ctrl-C (KeyboardInterrupt); ``notice`` is called with each message for the user, once."""
        from cagsr.rating.server import Session, application, make_server

        told: set[str] = set()

        def once(line: str) -> None:
            if line not in told:
                told.add(line)
                notice(line)

        port = self.listener.getsockname()[1]
        # Cookies are shared by all ports of a host; a name of its own keeps two ratings apart.
        app = application(Session(self.store, self.study, once), self.hosts, f"cagsr-{port}")
        make_server(app).run(sockets=[self.listener])

    def kept(self) -> str:
        """Message with the number of stored answers of all raters in this mode."""
        answers = sum(len(self.store.answers(name, self.study.mode)) for name in self.store.raters())
        return f"{answers} answers are in {self.store.path}"


def open_rating(
    directory: Path,
    raters: str,
    *,
    mode: Mode = "scores",
    items: int | None = None,
    systems: str | None = None,
    seed: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    open_to_network: bool = False,
) -> Rating:
    """Choose the items of a run or comparison, or continue an earlier choice, and give every rater a link.

    ``raters`` and ``systems`` are names with commas between them. Answers are kept in ``ratings.sqlite`` in the
    directory.

    Raises InputError for bad names, a directory without responses, other choices than the first time, a host
    that is open to others without ``open_to_network``, or a port in use; and StorageError.
    """
    try:
        import cagsr.rating.server
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name}: {PACKAGES}") from None
    names = _names(raters)
    path = directory / DATABASE
    _check_directory("RUN", directory)
    with ExitStack() as undone:
        listener = undone.enter_context(_listen(host, port, open_to_network))
        store, study = _study(path, mode, items, systems, seed)
        undone.callback(store.close)
        tokens = {name: store.admit(name) for name in names}
        undone.pop_all()
    hosts = _hosts(host, listener.getsockname()[1])
    links = {name: f"http://{hosts[0]}{cagsr.rating.server.ENTER}?token={tokens[name]}" for name in names}
    return Rating(store, study, links, listener, hosts, not _is_loopback(host))


def export_ratings(directory: Path, output: Path | None, raters: str | None) -> dict[str, Any]:
    """Write ratings.jsonl and pairs.jsonl to ``output`` (the directory itself); what `rating.export.export` returns.

    Raises InputError and StorageError.
    """
    try:
        from cagsr.rating.export import export
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name}: {PACKAGES}") from None
    _check_directory("RUN", directory)
    _check_directory("--output", output or directory)
    with closing(Store(directory / DATABASE)) as store:
        return export(store, output or directory, None if raters is None else _names(raters))


def _check_directory(what: str, path: Path) -> None:
    # Unlike Path.is_dir it takes any name, one that is too long for the disk included.
    if not os.path.isdir(path):
        raise InputError(f"{what}: {path} is no directory")


def _names(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise InputError(
                f"--raters: {name!r} is no name; give 1 to {LONGEST_NAME} printable characters, commas between names"
            )
    if len(set(names)) < len(names):
        raise InputError(f"--raters: a name is given twice in {given!r}; every rater needs one of their own")
    return names


def _study(
    path: Path, mode: Mode, items: int | None, systems: str | None, seed: int | None
) -> tuple[Store, Study]:
    """The open database and the study: its items chosen now, or as they were chosen the first time."""
    only = None if systems is None else sorted({name.strip() for name in systems.split(",")})
    given = {"items": items, "systems": only, "seed": seed}
    store = Store(path) if path.exists() or path.is_symlink() else None
    try:
        study = store.study(mode) if store else None
        if study is not None:
            for name, value in given.items():
                if value is not None and value != study.options[name]:
                    raise InputError(
                        f"{path} asks with --{name} {study.options[name]}, chosen when it was started; "
                        "leave the option out, or move the file away to start anew."
                    )
        else:
            study = _chosen(path.parent, mode, items or ITEMS, only, SEED if seed is None else seed)
            # Only now, so that a start that fails leaves no database behind.
            store = store or Store(path, create=True)
            store.add_study(study)
    except BaseException:
        if store is not None:
            store.close()
        raise
    assert store is not None
    return store, study


def _chosen(directory: Path, mode: Mode, items: int, systems: list[str] | None, seed: int) -> Study:
    random = Random(f"{seed} items {mode}")
    chosen = choose(read_groups(directory, systems, random), mode, items, random)
    if not chosen:
        needed = "a response" if mode == "scores" else "two responses that differ"
        raise InputError(
            f"{directory}: no prompt has {needed}, so there is nothing to rate; name another run"
        )
    return Study(mode, {"items": items, "systems": systems, "seed": seed}, chosen)


# The address ------------------------------------------------------------------------------------------------------


def _listen(host: str, port: int, open_to_network: bool) -> socket.socket:
    if host in ("0.0.0.0", "::", ""):
        raise InputError(
            f"--host {host!r} is every address at once; name the one that raters will type, so that the page can "
            "tell its own address from others."
        )
    if not _is_loopback(host) and not open_to_network:
        raise InputError(
            f"--host {host} is not this computer's loopback address: everybody on its network could reach the page, "
            "nothing is encrypted, and whoever sees a link can rate with it. Leave --host out, or add "
            "--open-to-network if that is what you want."
        )
    try:
        # Not SO_REUSEPORT: of two servers on one port the second must fail.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server(
            ("127.0.0.1" if host == "localhost" else host, port), family=family, backlog=512
        )
        # asyncio does it for sockets of its own; without it every answer waits 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise InputError(
            f"{host} port {port} cannot be used: {error.strerror or error}. Choose another --port."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hosts(host: str, port: int) -> tuple[str, ...]:
    """Host header values of browsers that were given our address; the first one is in the links."""
    same = ("127.0.0.1", "localhost")
    names = [host.lower(), *(name for name in same if name != host)] if host in same else [host.lower()]
    names = [f"[{name}]" if ":" in name else name for name in names]
    return tuple(f"{name}:{port}" for name in names) + (tuple(names) if port == 80 else ())
