"""A real headless browser for tests of pages, and what a page did there that it should not have done."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def installed() -> str | None:
    """Where a Chromium is, or None: then there is nothing to test a page in."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=installed(), args=FLAGS)
        try:
            yield started
        finally:
            started.close()


@dataclass
class Watched:
    """A page, and everything that it said, threw, asked for or opened."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


def watch(page: Page) -> Watched:
    """Collect from now on. What is asked for is written down and refused, so that nothing leaves the machine."""
    watched = Watched(page)

    def answer(dialog) -> None:
        watched.dialogs.append(dialog.message)
        dialog.dismiss()

    def request(route) -> None:
        address = route.request.url
        if address.startswith(("file:", "data:")):
            route.continue_()
        else:
            watched.asked.append(address)
            route.abort()

    page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.said.append(f"thrown: {error}"))
    page.on("dialog", answer)
    page.on("popup", lambda popup: watched.asked.append(f"popup {popup.url}"))
    page.on("websocket", lambda socket: watched.asked.append(socket.url))
    page.route("**/*", request)
    return watched


def open_file(page: Page, path: Path) -> Watched:
    watched = watch(page)
    page.goto(path.as_uri())
    return watched
