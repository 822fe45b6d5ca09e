"""Bad input gets one plain message before anything is trained: fuzzed configs and data sets, each from a seed.

A config is read and checked as `cagsr train` does before it loads a model; a data set is read, mapped and encoded.
What comes back is a config, prompts and an account of every row, or one message; nothing else, and in time. One
item in fifty goes through the whole command line, where a refusal is exit 2 and one message, and leaves no file.

An item is its seed: ``fuzzed_input.problems(seed)`` runs it again.
"""

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from transformers.utils import logging

from cagsr.cli import main as cli
from cagsr.config import Config, check_paths
from cagsr.errors import InputError, StorageError
from cagsr.models.from_scratch import new_model
from cagsr.rewards.presets import build_reward
from cagsr.tasks import TASKS, tokenizer
from cagsr.tasks.checkers import find_checker
from cagsr.training.preflight import check_training
from config_mutations import Given, broken_config, broken_preset
from data_mutations import broken_data
from rows_accounted_for import lost_rows

TITLE = "bad input gets one message before training"
PROMISE = 8
COUNT = 10_000

SECONDS = 10  # an item may take
BY_COMMAND_LINE = 0.02
SMALL = ("train.steps=1", "train.prompts_per_step=2", "train.micro_batch=6")
SMALL += ("sampling.candidates=3", "sampling.max_new_tokens=7", "run.directory=run")
SMALL += ("data.count=11", "data.evaluation_count=5")
SCRATCH = (
    "sft.steps=1",
    "sft.directory=run",
    "sft.batch_size=2",
    "sft.scratch.layers=1",
    "sft.scratch.hidden=8",
)
SCRATCH += ("sft.scratch.heads=2", "sft.scratch.vocabulary=300")


class Hang(BaseException):
    """Nothing may catch it as an error of its own."""


def prove(count: int, random: Random, advance: Callable[[], None]) -> list[str]:
    """Items that ended in anything but an answer or one plain message, each with its seed."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    failures = []
    for _ in range(min(count, COUNT)):
        seed = random.getrandbits(48)
        failures += [f"seed {seed}: {problem}" for problem in problems(seed)]
        advance()
    return failures


def problems(seed: int) -> list[str]:
    """What is wrong with the answer to the item of this seed."""
    random = Random(seed)
    (kind,), by_command_line = random.choices(tuple(KINDS), (5, 5, 1)), random.random() < BY_COMMAND_LINE
    with _elsewhere():
        try:
            with _in_time(SECONDS):
                return [f"{kind}: {problem}" for problem in KINDS[kind][by_command_line](random)]
        except Hang:
            return [f"{kind}: no answer in {SECONDS} s"]


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    started = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(started)


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Configs ----------------------------------------------------------------------------------------------------------


def _config(random: Random) -> list[str]:
    answer = _answer(_write(broken_config(random)))
    return [] if answer is None else answer[1]


def _write(given: Given) -> tuple[str | None, list[str]]:
    if given.content is None:
        return None, given.overrides
    Path("c.yaml").write_bytes(given.content)
    return "c.yaml", given.overrides


def _answer(arguments: tuple[str | None, list[str]]) -> tuple[str, list[str]] | None:
    """The message of a config that is refused, and what is wrong with that; None where it is taken."""
    try:
        config = Config.load(*arguments)
        check_paths(config)
        check_training(config, build_reward(config.reward, find_checker(config.data)))
    except (InputError, StorageError) as error:
        return str(error), _unplain(error)
    except Exception as error:
        return "", [_bug(error)]
    Path("again.yaml").write_text(config.as_yaml(), encoding="utf-8", newline="")
    return None if Config.load("again.yaml") == config else ("", ["does not load back equal"])


def _unplain(error: InputError | StorageError) -> list[str]:
    message = str(error)
    if not message.strip():
        return ["refused without a word"]
    if isinstance(error, StorageError) and "run.directory" not in message:
        return [f"the disk is blamed for {message[:80]!r}"]
    return []


def _bug(error: Exception) -> str:
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = "" if where is None else f" in {Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
    return f"no plain message but {type(error).__name__}{line}: {str(error)[:80]!r}"


def _preset(random: Random) -> list[str]:
    answer = _answer((None, _with_preset(random)))
    return [] if answer is None else answer[1]


def _with_preset(random: Random) -> list[str]:
    Path("p.yaml").write_bytes(broken_preset(random))
    return ["data.task=slots", "reward.preset=p.yaml"]


# Data -------------------------------------------------------------------------------------------------------------


def _data(random: Random) -> list[str]:
    given = broken_data(random)
    given.write()
    try:
        return lost_rows(given, random)
    except InputError as error:
        return _unplain(error)
    except Exception as error:
        return [_bug(error)]


# The whole command ------------------------------------------------------------------------------------------------


def _config_by_command_line(random: Random) -> list[str]:
    while (answer := _answer(arguments := _write(broken_config(random)))) is None:
        pass
    path, overrides = arguments
    message, wrong = answer
    return wrong or _refused([*([] if path is None else ["--config", path]), "--", *overrides], message)


def _data_by_command_line(random: Random) -> list[str]:
    given = broken_data(random)
    given.write()
    settings = [f"data.{key}={json.dumps(value)}" for key, value in given.settings()]
    if random.random() < 0.3:
        return _refused([*settings, *SMALL, *SCRATCH], command="sft")
    return _refused([*settings, f"model.name={_models() / random.choice(('t5', 'llama'))}", *SMALL])


def _preset_by_command_line(random: Random) -> list[str]:
    return _refused([*_with_preset(random), f"model.name={_models() / 't5'}", *SMALL])


def _refused(arguments: list[str], message: str | None = None, command: str = "train") -> list[str]:
    """What is wrong with how a command answers: it refuses in the words of ``message``, or, without, may train."""
    before = set(os.listdir())
    code, said = _run([command, *arguments])
    if code == 0 and message is None:
        return [] if Path("run/summary.json").is_file() else ["exit 0 without a summary"]
    if code not in (2, 4):
        return [f"exit {code}: {said[-300:]!r}"]
    wrong = (
        []
        if said.startswith("error: ") and said.count("error: ") == 1
        else [f"not one message: {said[:200]!r}"]
    )
    wrong += ["a traceback"] if "Traceback" in said else []
    wrong += [] if said.replace("\n", "").isprintable() else [f"not printable: {said!r}"]
    # Trackers are looked for between the paths and the rest.
    same = message is None or said == f"error: {message}\n" or said.startswith("error: run.trackers: ")
    wrong += [] if same else [f"not the message {message!r} but {said!r}"]
    return wrong + ([f"left {left} behind"] if (left := sorted(set(os.listdir()) - before)) else [])


def _run(arguments: list[str]) -> tuple[object, str]:
    """Exit code and standard error of the command line, in this process; its streams are as strict as a terminal's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    code: object = None
    with (
        patch.object(sys, "argv", ["cagsr", *arguments]),
        patch.object(sys, "path", [*sys.path]),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        except Exception as error:
            code = _bug(error)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    streams[1].seek(0)
    return code, streams[1].read()


KINDS: dict[str, tuple[Callable[[Random], list[str]], Callable[[Random], list[str]]]] = {
    "config": (_config, _config_by_command_line),
    "data": (_data, _data_by_command_line),
    "preset": (_preset, _preset_by_command_line),
}


@cache
def _models() -> Path:
    """A directory with a tiny ``t5`` and ``llama``, kept as long as this process."""
    root = Path(_kept().name)
    for name in ("t5", "llama"):
        words = tokenizer(TASKS["slots"], "causal" if name == "llama" else "encoder-decoder")
        torch.manual_seed(0)
        new_model(name, words, layers=1, hidden=8, heads=2, context=64).save_pretrained(root / name)
        words.save_pretrained(root / name)
    return root


@cache
def _kept() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
