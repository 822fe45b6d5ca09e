"""Web application of the rating page: a rater's state, answers and undo."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.types import ASGIApp

from cagsr.errors import StorageError
from cagsr.rating.items import QUESTIONS, flipped, order
from cagsr.rating.sanitize import shown
from cagsr.rating.security import ENTER, Guards
from cagsr.rating.store import Store, Study

__all__ = ["ROUTES", "Session", "application", "make_server"]

PAGE = Path(__file__).parent / "page"
TEMPLATES = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
MONTH = 30 * 24 * 3600
# A request that is being answered when the server is asked to stop may end.
SECONDS_TO_STOP = 3

router = APIRouter()


class Session:
    """One study as raters see it. ``notice`` is called with messages for the person at the terminal."""

    def __init__(self, store: Store, study: Study, notice: Callable[[str], None]):
        self.store, self.study, self.notice = store, study, notice
        self.questions = QUESTIONS[study.mode]
        self._orders: dict[str, list[int]] = {}

    def state(self, rater: str) -> dict[str, Any]:
        """A rater's progress: the first item that is not answered, or none; nothing in it names a system."""
        answers = self.store.answers(rater, self.study.mode)
        numbers = self.order(rater)
        done = [number for number in numbers if self._complete(number, answers)]
        following = next((number for number in numbers if not self._complete(number, answers)), None)
        return {
            "done": len(done),
            "total": len(numbers),
            "last": self.store.last(rater, self.study.mode),
            "item": None if following is None else self._item(rater, following, answers),
        }

    def order(self, rater: str) -> list[int]:
        if rater not in self._orders:
            self._orders[rater] = order(self.study.items, rater, self.study.seed)
        return self._orders[rater]

    def value(self, rater: str, item: int, value: int) -> int:
        """The stored value of a rater's value, and the inverse: A and B may be exchanged on the page."""
        return -value if self._flipped(rater, item) else value

    def _complete(self, item: int, answers: dict[tuple[int, str], int]) -> bool:
        return all((item, question) in answers for question in self.questions)

    def _flipped(self, rater: str, item: int) -> bool:
        return self.study.mode == "pairs" and flipped(self.study.items, item, rater, self.study.seed)

    def _item(self, rater: str, number: int, answers: dict[tuple[int, str], int]) -> dict[str, Any]:
        item = self.study.items[number]
        texts = [shown(response.text) for response in item.responses]
        return {
            "number": number,
            "prompt": shown(item.prompt if item.shown is None else item.shown),
            "responses": texts[::-1] if self._flipped(rater, number) else texts,
            "answers": {
                question: self.value(rater, number, answers[number, question])
                for question in self.questions
                if (number, question) in answers
            },
        }


class Answer(BaseModel):
    """Request body of an answer: a score from 1 to 5; or 1 for response A, the left one, -1 for B, 0 for neither."""

    model_config = ConfigDict(extra="forbid")

    item: StrictInt
    question: Literal["relevance", "coherence", "overall", "preference"]
    value: StrictInt


class Undo(BaseModel):
    """Request body of an undo: ``last`` of the state, a number, so that asking twice takes back one answer."""

    model_config = ConfigDict(extra="forbid")

    answer: Annotated[StrictInt, Field(ge=1, lt=2**53)]


def _session(request: Request) -> Session:
    return request.app.state.session


def _rater(request: Request) -> str:
    return request.state.rater


Rater = Annotated[str, Depends(_rater)]
Given = Annotated[Session, Depends(_session)]


@router.get(ENTER)
def enter(request: Request, token: str) -> RedirectResponse:
    response = RedirectResponse("/", status_code=303)
    # Not "secure": loopback has no certificate.
    response.set_cookie(
        request.app.state.cookie, token, max_age=MONTH, httponly=True, samesite="strict", path="/"
    )
    return response


@router.get("/")
def page(rater: Rater, session: Given) -> HTMLResponse:
    template = TEMPLATES.get_template("page.html")
    return HTMLResponse(template.render(rater=rater, mode=session.study.mode, questions=session.questions))


@router.get("/style.css")
def style() -> FileResponse:
    return FileResponse(PAGE / "style.css", media_type="text/css")


@router.get("/script.js")
def script() -> FileResponse:
    return FileResponse(PAGE / "script.js", media_type="text/javascript")


@router.get("/state")
def state(rater: Rater, session: Given) -> dict[str, Any]:
    return session.state(rater)


@router.post("/answer")
def answer(rater: Rater, session: Given, given: Answer) -> dict[str, Any]:
    """Store an answer; the state that is returned shows that it was stored."""
    values = range(1, 6) if session.study.mode == "scores" else range(-1, 2)
    if given.question not in session.questions or not 0 <= given.item < len(session.study.items):
        raise HTTPException(422, "no such question")
    if given.value not in values:
        raise HTTPException(422, f"the value must be from {values[0]} to {values[-1]}")
    kept = session.value(rater, given.item, given.value)
    session.store.answer(rater, session.study.mode, given.item, given.question, kept)
    now = session.state(rater)
    if now["item"] is None:
        session.notice(f"{rater} has rated all {now['total']}")
    return now


@router.post("/undo")
def undo(rater: Rater, session: Given, given: Undo) -> dict[str, Any]:
    if not session.store.undo(rater, session.study.mode, given.answer):
        raise HTTPException(422, "no such answer")
    return session.state(rater)


# Every path that answers something.
ROUTES = tuple(sorted({getattr(route, "path", "") for route in router.routes}))


def application(session: Session, hosts: Collection[str], cookie: str) -> ASGIApp:
    """The ASGI application behind its guards; ``hosts`` are the addresses, with port, that are its own."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(router)
    app.state.session, app.state.cookie = session, cookie

    @app.exception_handler(StorageError)
    def not_kept(request: Request, error: StorageError) -> JSONResponse:
        session.notice(f"NOT SAVED, an answer of {request.state.rater}: {error}")
        return JSONResponse({"problem": "the computer that serves this page cannot write"}, status_code=507)

    return Guards(app, hosts, cookie, session.store.rater_of)


def make_server(app: ASGIApp) -> uvicorn.Server:
    """The server of the application; ``run`` serves on given sockets until Ctrl-C, raised as KeyboardInterrupt."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    return uvicorn.Server(config)
