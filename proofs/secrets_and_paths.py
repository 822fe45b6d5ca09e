"""Paths stay inside the run directory, and secrets stay out of it.

A hostile name is given wherever a run, a comparison or a file takes one: a bystander directory and its canary
must stay as they were. The secrets are in the environment of one real run, which trains, saves and writes its
card, and of one judge that repeats the key it was given; none may be in a file or in what was printed.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import runs
from cagsr.config import Config
from cagsr.data.readers import read
from cagsr.errors import CagsrError
from cagsr.evaluation.leaderboard import csv_text, markdown
from cagsr.experiments.systems import find_systems
from cagsr.io.atomic_write import write_atomically
from cagsr.metrics.endpoint import Endpoint
from cagsr.metrics.ratings import read_ratings
from cagsr.models.from_scratch import new_model
from cagsr.models.load import load_model, load_tokenizer
from cagsr.rating.session import export_ratings, open_rating
from cagsr.rewards.presets import load_preset
from cagsr.runs.directory import RunDirectory
from cagsr.runs.model_card import model_card
from cagsr.tasks import TASKS, tokenizer

TITLE = "paths stay inside the run directory, secrets outside it"
PROMISE = 15
SHARDS = False
NAMES = 1000

# In the environment of a run; each gets a canary of its own.
VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_TOKEN",
    "OPENAI_API_KEY",
    "OPENAI_ORG_ID",
    "ANTHROPIC_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_SECRET",
    "WANDB_API_KEY",
    "COMET_API_KEY",
    "GITHUB_TOKEN",
    "GIT_ASKPASS_SECRET",
    "DATABASE_URL",
    "SSH_PRIVATE_KEY",
    "CAGSR_SECRET",
)
# In places where a key is typed by mistake, and in what a server says.
PLACES = ("user in the URL", "query of the URL", "fragment of the URL", "repeated by the server")
SECRETS = (*VARIABLES, *PLACES)
COUNT = NAMES + len(SECRETS)


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """Names that got out of the run directory or without a plain answer, and secrets that got in."""
    number = min(count, COUNT)
    secrets = max(1, number * len(SECRETS) // COUNT) if number > 1 else 0
    failures = []
    for _ in range(number - secrets):
        name = hostile_name(random)
        failures += [f"name {name[:60]!r}: {problem}" for problem in escapes(name)]
        advance()
    chosen = SECRETS if secrets == len(SECRETS) else random.sample(SECRETS, secrets)
    canaries = {name: f"canary{random.getrandbits(96):024x}" for name in chosen}
    found = leaks(canaries)
    for name in canaries:
        failures += [f"secret {name}: in {place}" for place in found.get(name, [])]
        advance()
    return failures


# Names ------------------------------------------------------------------------------------------------------------

PARTS = (
    "..",
    ".",
    "",
    "x",
    "~",
    "bystander",
    "bystander.txt",
    "link",
    "model",
    "-rf",
    "con",
    "a b",
    "\u202egnp",
    "é",
)
PARTS += (
    "$(touch x)",
    "`touch x`",
    "%2e%2e",
    "..\\..",
    "C:",
    "\n",
    "\t",
    "\x00",
    "\udc80",
    "\ufeff",
    "😀",
    "*",
    "x" * 300,
)
HEADS = ("", "", "", "/", "//", "../", "../../", "link/", "./", "file:///", "\\\\host\\", "~/")
TAILS = ("", "", "/", "/.", "/..", "\x00", "\n", " ", ".yaml", ".jsonl", "/x" * 3000)


def hostile_name(random: Random) -> str:
    """A name that climbs, is absolute, follows a link, is no text, is too long, or is read by a shell."""
    parts = random.choices(PARTS, k=random.randint(1, 4))
    return (random.choice(HEADS) + "/".join(parts) + random.choice(TAILS)) or ".."


def escapes(name: str) -> list[str]:
    """What went wrong where a name was given to everything that takes one; each sink in a directory of its own."""
    problems = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        bystander = place / "bystander"
        (bystander / "inner").mkdir(parents=True)
        (bystander / "bystander.txt").write_text("untouched")
        run = place / "runs" / "one"
        run.mkdir(parents=True)
        (place / "runs" / "link").symlink_to(bystander)
        before = _tree(place, run)
        started = Path.cwd()
        os.chdir(place / "runs")
        try:
            for sink, give in SINKS.items():
                problem = _given(give, name, run)
                problem = problem or (
                    "" if _tree(place, run) == before else "wrote outside the run directory"
                )
                problems += [f"{sink}: {problem}"] if problem else []
        finally:
            os.chdir(started)
    return problems


def _given(give: Callable[[str, Path], object], name: str, run: Path) -> str:
    try:
        give(name, run)
    except CagsrError as error:
        return "" if str(error).strip() else "refused without a word"
    except Exception as error:
        return f"no plain message but {type(error).__name__}: {str(error)[:80]}"
    return ""


def _tree(place: Path, run: Path) -> dict[str, bytes | str]:
    """Every file, link and directory with its content, but for what the run directory holds."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in place.rglob("*")
        if run not in path.parents
    }


def _record(name: str, run: Path) -> None:
    """A run whose signals, columns, prompts and hashes have the name."""
    record = RunDirectory(run, name)
    record.add_metrics(1, {name: 1.0})
    record.add_candidates(1, [{"prompt": name, name: name}])
    record.write_summary({name: {name: name}})
    assert record.rows("candidates.jsonl")[-1]["prompt"] == name, "did not come back as it was written"


def _compare(name: str, run: Path) -> None:
    for system in find_systems([name], [10]):
        (run / system / "seed-0").mkdir(parents=True, exist_ok=True)


def _table(name: str, run: Path) -> None:
    value = {"mean": 1.0, "low": 0.5, "high": 1.5}
    parts: dict[str, Any] = {"systems": {name: {"length": value}}, "differences": {}, "sampled": {}}
    parts |= {"length_matched": {}}
    parts |= {"opinions": {"systems": {name: {}}}, "not_for_this_data": {name: name}}
    parts |= {"cost": {name: {"seconds": 1, "generated_tokens": 1, "labels": 1}}}
    text = markdown(parts) + csv_text(parts)
    write_atomically(run / "table.md", text.encode("utf-8", "backslashreplace").decode())


def _card(name: str, run: Path) -> None:
    settings = Config.load(None, ["data.task=slots"]).model_dump(mode="json")
    settings["reward"]["preset"] = name
    text = model_card(settings, 1, {"step": 1.0, name: 1.0}, 1)
    write_atomically(run / "README.md", text.encode("utf-8", "backslashreplace").decode())


def _rate(name: str, run: Path) -> None:
    """People of that name rate what it asked and answered, and it all comes back."""
    place = run / "base" / "seed-0"
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / "responses.jsonl", json.dumps({"prompt": name, "response": name}) + "\n")
    with open_rating(run, name, port=0) as rating:
        for rater in rating.links:
            for question in ("relevance", "coherence", "overall"):
                rating.store.answer(rater, "scores", 0, question, 3)
    export_ratings(run, None, None)
    assert read_ratings(run / "ratings.jsonl").mean("base", name, name)[0] == 3, "did not come back"


SINKS: dict[str, Callable[[str, Path], object]] = {
    "records": _record,
    "compare.systems": _compare,
    "table": _table,
    "card": _card,
    "rate": _rate,
    "rate RUN": lambda name, _: open_rating(Path(name), "anna", port=0).__exit__(),
    "rate RUN --export": lambda name, _: export_ratings(Path(name), Path(name), None),
    "config": lambda name, _: Config.load(name),
    "override": lambda name, _: Config.load(None, [name]),
    "data.source": lambda name, _: read(name + ".jsonl"),
    "reward.preset": lambda name, _: load_preset(name + ".yaml"),
    "metrics.ratings": lambda name, _: read_ratings(name),
    "model.name": lambda name, _: load_model(name),
    "tokenizer": lambda name, _: load_tokenizer(name),
}

# Secrets ----------------------------------------------------------------------------------------------------------

SMALL = (
    "data.task=slots",
    "data.count=11",
    "data.evaluation_count=5",
    "train.steps=1",
    "train.prompts_per_step=2",
)
SMALL += ("model.name=base", "train.micro_batch=6", "sampling.candidates=3", "sampling.max_new_tokens=7")
JUDGE = ("metrics.judge.model=judge",)
ENDPOINT = "metrics.judge.endpoint="


def leaks(canaries: dict[str, str]) -> dict[str, list[str]]:
    """Secret -> where it was found: a file of the run, or what was printed."""
    texts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        _base(Path(place) / "base")
        variables = {name: canaries[name] for name in VARIABLES if name in canaries}
        texts["what train printed"] = _train(Path(place), variables)
        # What is read at import was said above; an address is read later.
        judged = [
            runs.start(
                ["train", *SMALL, *JUDGE, ENDPOINT + url, f"run.directory={number}"], Path(place), variables
            )
            for number, url in enumerate(_urls(canaries))
        ]
        for number, run in enumerate(judged):
            run.wait()
            texts[f"what train printed of {number}"] = run.out + run.err
        if PLACES[3] in canaries:
            texts["what the judge's error says"] = _echoed(canaries[PLACES[3]])
        for path in Path(place).rglob("*"):
            if path.is_file():
                texts[str(path.relative_to(place))] = path.read_bytes().decode("latin-1")
    assert "run/run.json" in texts, texts["what train printed"]
    assert "run/model/README.md" in texts, texts["what train printed"]
    return {
        name: [where for where, text in texts.items() if secret in text] for name, secret in canaries.items()
    }


def _urls(canaries: dict[str, str]) -> list[str]:
    forms = ("http://me:{}@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?key={}", "http://127.0.0.1:9/v1#{}")
    return [
        form.format(canaries[name]) for form, name in zip(forms, PLACES, strict=False) if name in canaries
    ]


def _base(directory: Path) -> None:
    words = tokenizer(TASKS["slots"], "causal")
    new_model("llama", words, layers=1, hidden=8, heads=2, context=64).save_pretrained(directory)
    words.save_pretrained(directory)


def _train(place: Path, variables: dict[str, str]) -> str:
    """Train in a process that imports everything with these variables; what it printed."""
    command = [sys.executable, "-m", "cagsr", "train", *SMALL, "run.directory=run"]
    # A token in the environment must not make the hub be asked: nothing here needs it.
    environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout + done.stderr


class _Echo(BaseHTTPRequestHandler):
    """Refuses every request, and repeats the key it was given."""

    def do_POST(self) -> None:
        body = json.dumps({"error": f"wrong key {self.headers['Authorization']}"}).encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _echoed(secret: str) -> str:
    server = HTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with patch.dict(os.environ, {"OPENAI_API_KEY": secret}):
            endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "judge")
        described = json.dumps(endpoint.describe())
        try:
            endpoint([{"role": "user", "content": "?"}], 1)
        except CagsrError as error:
            return f"{described} {error} {error!r}"
        return described
    finally:
        server.shutdown()
        server.server_close()
