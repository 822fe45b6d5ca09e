"""Every command of README.md and docs/ is run, on tiny models of the names that the pages use.

A page is a place of its own: the files of its titled blocks are written there, and its commands and Python blocks are
run in their order. What makes a command quick is appended to it, and what is not run is listed with its reason.
"""

import json
import os
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
import tomllib
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import documented_pages as pages
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import AutoTokenizer

import forked
import raters
import tiny
from cagsr.config import Config
from cagsr.rating.items import QUESTIONS
from cagsr.rating.session import Rating
from command_line import settle, typed

NOT_RUN = {
    "cagsr demo --model instruct": "it fetches a model; tests/cli/test_demo.py runs it on a tiny one",
    "cagsr export runs/lora my-model.gguf": "it needs llama.cpp; tests/training/test_export_model.py has a converter",
    "python -m venv harness": "lm-eval is no dependency; tests/cli/test_lm_eval.py has a program that stands in",
    "cagsr lm-eval": "it needs that environment; run by hand on a task of its own",
    "cagsr eval base=HuggingFaceTB/SmolLM2-135M-Instruct mine=runs/my/model data.source=ifeval": "the reader's own "
    "prompts; tests/cli/test_eval.py has others",
    "make prove": "twenty minutes; its parts are run at a small count in tests/proofs",
    "git clone": "the repository is here",
    "pip wheel": "it builds in an environment of its own, which needs a package index",
    "make table": "hours; it is cagsr compare, which is run",
    "kill -9 …": "what it does to a run is proved in proofs/",
    ". .venv/bin/activate": "there is no such environment here",
    "VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1": "make check-vllm starts one; "
    "a fake of it serves in tests/cli/test_train_vllm.py",
    "VLLM_SERVER_DEV_MODE=1 vllm serve": "it needs a GPU; a fake of it serves in tests/cli/test_train_vllm.py",
    "cagsr train --config vllm.yaml": "it needs that server; run against the fake one there",
    "ACCELERATE_USE_CPU=1 torchrun": "run by tests/distributed/test_distributed.py",
    "accelerate launch --config_file examples/accelerate/fsdp.yaml": "Accelerate shards on GPUs only; run as if it did "
    "here by tests/cli/test_sharded_training.py",
}

E2E_SFT, E2E_TRAIN, E2E_EVAL, E2E_COMPARE = (
    f"cagsr {command} --config examples/e2e.yaml data.source=e2e.jsonl{more}"
    for command, more in (
        ("sft", ""),
        ("train", ""),
        ("eval base=runs/e2e-base/model cagsr=runs/e2e/model", ""),
        ("compare", " compare.preferences=pairs.jsonl"),
    )
)
# Commands of a page that another one runs too, from the same beginning: (that page, the commands).
RUN_THERE = {
    "README.md": ("docs/tutorial.md", ["make demo"]),
    "docs/index.md": ("docs/tutorial.md", ["make demo"]),
    "docs/tutorial.md": ("docs/guides/probe.md", ["cagsr probe data.task=slots-paraphrase"]),
    "docs/lab-notes.md": ("docs/guides/e2e.md", [E2E_SFT, E2E_TRAIN, E2E_EVAL]),
    "docs/results.md": ("docs/guides/e2e.md", [E2E_SFT, E2E_COMPARE]),
}

# Appended to a command, unless it names the key itself; a number of steps is appended in any case, and wins.
STEPS = ["train.steps=2", "train.warmup_steps=0", "train.prompts_per_step=2", "train.micro_batch=8"]
SAMPLING = ["sampling.candidates=2", "sampling.max_new_tokens=4"]
DATA = ["data.count=8", "data.evaluation_count=2"]
SFT = ["sft.steps=2", "sft.warmup_steps=0", "sft.batch_size=2"]
COMPARE = [
    "compare.synthetic_pairs=4",
    "compare.control=lexical",
    "compare.systems=[no-rl,best-of-k,lexical]",
]
QUICK = {
    "demo": [*STEPS, *SAMPLING, *DATA],
    "train": [*STEPS, *SAMPLING, *DATA],
    "sft": [*SFT, *DATA],
    "eval": [*SAMPLING, *DATA],
    "compare": [*STEPS, *SAMPLING, *DATA, *COMPARE, *SFT],
    "probe": [*SAMPLING, *DATA, "--prompts 3"],
    "calibrate": ["sampling.candidates=3", "sampling.max_new_tokens=12", *DATA, "--prompts 5"],
    "score": [*SAMPLING],
    "plan": ["data.max_prompt_tokens=24", *SAMPLING],  # the tiny model has a context of 64
    "rate": ["--port 0", "--items 4"],
}
# The examples train and measure much; what they do at full size is in docs/results.md.
EXAMPLES = {
    "compare": [
        "metrics.relevance_model=null",
        "compare.systems=[no-rl,cagsr-grpo,lexical]",
        "compare.seeds=[0]",
    ],
    "eval": ["metrics.relevance_model=null"],
}

# What makes a Python block quick.
QUICK_PYTHON = {
    r"max_steps=\d+": "max_steps=2",
    r"num_generations=\d+": "num_generations=2",
    r"max_completion_length=\d+": "max_completion_length=8",
}

CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The names that pages use, as directories: transformers takes one before it asks the hub."""
    root = tmp_path_factory.mktemp("hub")
    tiny.save_models(root)
    shutil.copytree(root / "t5", root / "google/flan-t5-small")
    words = AutoTokenizer.from_pretrained(root / "llama")
    words.chat_template = CHAT
    for name in ("Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-0.5B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        shutil.copytree(root / "llama", root / name)
        words.save_pretrained(root / name)
    return root


@pytest.fixture
def place(tmp_path, models, monkeypatch):
    """Where a page's commands are typed: models, examples and the data that all pages may name."""
    work = tmp_path / "work"
    (work / "runs").mkdir(parents=True)
    for owner in ("google", "Qwen", "HuggingFaceTB"):
        shutil.copytree(models / owner, work / owner)
    shutil.copytree(pages.ROOT / "examples", work / "examples")
    prompts = [f"describe colour : red ; day : monday ; hour : {n}" for n in range(40)]
    pairs = [{"prompt": prompt, "chosen": "red on monday", "rejected": "red"} for prompt in prompts[:20]]
    meanings = [
        {
            "prompt": f"name : The Vaults ; food : {n}",
            "mr": f"name[The Vaults], food[{n}]",
            "reference": "The Vaults .",
        }
        for n in range(80)
    ]
    write_rows(work / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    write_rows(work / "pairs.jsonl", pairs)
    write_rows(work / "e2e.jsonl", meanings)
    # datasets' own directory in the place of the hub's data set, with its columns.
    columns = {"meaning_representation": "mr", "human_reference": "reference"}
    hub = [{name: row[column] for name, column in columns.items()} for row in meanings]
    Dataset.from_list(hub).save_to_disk(work / "tuetschek" / "e2e_nlg")
    settle(work, monkeypatch)
    monkeypatch.syspath_prepend(work)
    monkeypatch.setattr(Rating, "serve", rate_all_and_stop)
    monkeypatch.setattr(socketserver.BaseServer, "serve_forever", ask_once_and_stop)
    yield work
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.modules.pop("mine", None)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rate_all_and_stop(rating: Rating, notice: object) -> None:
    """In place of a server that waits for people: every rater answers all, then comes Ctrl-C."""
    with raters.served(rating):
        for number, link in enumerate(rating.links.values()):
            with raters.Client(link) as client:
                for item in range(len(rating.study.items)):
                    for question in QUESTIONS[rating.study.mode]:
                        value = (item + number) % 2 + (rating.study.mode == "scores")
                        assert client.answer(item, question, value).status == 200
    raise KeyboardInterrupt


SERVE = socketserver.BaseServer.serve_forever


def ask_once_and_stop(server: Any) -> None:
    """In place of a report that is served until Ctrl-C."""
    thread = threading.Thread(target=SERVE, args=(server,))
    thread.start()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/", timeout=30) as answer:
        assert answer.status == 200
    server.shutdown()
    thread.join()
    raise KeyboardInterrupt


class Typist:
    """Types a page's commands; each must end as its page says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def run(self, command: str) -> None:
        if any(command.startswith(known) for known in NOT_RUN):
            if command.startswith("make "):
                assert f"\n{command.split()[1]}: " in pages.text_of("Makefile"), f"no such target: {command}"
            return
        words = shlex.split(command)
        if words[0] == "make":
            words = shlex.split(made(words[1]))
        if words[:2] == ["accelerate", "launch"]:
            words = self.launched(words)
        if not words:
            return
        if words[0] == "cagsr":
            self.cagsr(words[1:])
        elif words[0] == "pip":
            demand_extras(words)
        else:
            raise AssertionError(f"neither run nor listed in NOT_RUN: {command}")

    def launched(self, words: list[str]) -> list[str]:
        """One process is this one. Several are started for real, on the CPU."""
        given = launch_command_parser().parse_args(words[2:])
        _validate_launch_command(given)
        assert (given.module, given.training_script) == (True, "cagsr")
        inner = ["cagsr", *given.training_script_args]
        if given.config_file is None:
            return inner
        launcher = partial(forked.module, "accelerate.commands.launch", [*words[2:], *quick(inner[1:])])
        environment = {"ACCELERATE_USE_CPU": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        launched = forked.start(launcher, Path.cwd(), environment)
        assert launched.wait(300) == 0, launched.err[-3000:]
        assert [*Path("runs").glob("*/checkpoints/*/random_states_1.pkl")], "there was no second process"
        return []

    def cagsr(self, words: list[str]) -> None:
        words, target = redirected(words)
        outcome = typed([*words, *quick(words)], self.monkeypatch, self.capsys)
        used = re.search(r"error: (\S+) belongs to run", outcome.err)
        if used and "--resume" not in words:  # a page shows ways to run one thing, each from the beginning
            shutil.rmtree(used[1])
            outcome = typed([*words, *quick(words)], self.monkeypatch, self.capsys)
        stopped = words[0] == "rate" and "--export" not in words
        assert outcome.code == (130 if stopped else 0), outcome.err
        if target:
            Path(target).write_text(outcome.out)


def made(target: str) -> str:
    """What a target of the Makefile runs."""
    recipe = re.search(
        rf"^{target}: .*\n\t\$\(BIN\)/(.*) \$\(ARGS\)$", pages.text_of("Makefile"), re.MULTILINE
    )
    assert recipe, f"neither run nor listed in NOT_RUN: make {target}"
    return recipe[1]


def demand_extras(words: list[str]) -> None:
    (package,) = [word for word in words if word.startswith(".")]
    known = tomllib.loads(pages.text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(package[2:-1].split(",")) <= set(known), package


def redirected(words: list[str]) -> tuple[list[str], str | None]:
    """``[a, >, file]`` -> ``[a]``, ``file``."""
    return (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, None)


def quick(words: list[str]) -> list[str]:
    """What is appended to a command to make it small."""
    if not words or {"--list", "--help", "--export"} & set(words):
        return []
    added = [*QUICK.get(words[0], [])]
    if any(word.startswith("examples/") for word in words):
        added += EXAMPLES.get(words[0], [])  # of two values of a key the later one holds
    typed_keys = {re.split("[= ]", word)[0] for word in words}
    return [
        part
        for one in added
        if (key := re.split("[= ]", one)[0]) not in typed_keys or key.endswith(".steps")
        for part in ([one] if "=" in one else one.split())
    ]


@pytest.mark.parametrize("page", [page for page in pages.PAGES if any(pages.blocks(page))])
def test_every_command_and_every_python_block_of_a_page_runs(page, place, monkeypatch, capsys):
    found = list(pages.blocks(page))
    for block in found:
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
    typist, namespace = Typist(monkeypatch, capsys), {"__name__": "__main__"}
    _, run_there = RUN_THERE.get(page, ("", []))
    for block in found:
        if block.language == "sh":
            for command in block.commands:
                if command in run_there:
                    continue
                try:
                    typist.run(command)
                except BaseException as error:
                    raise AssertionError(f"{page}:{block.line}: {command}\n{error}") from error
        elif block.language == "python":
            exec(compile(quick_python(block.text), f"{page}:{block.line}", "exec"), namespace)


def quick_python(text: str) -> str:
    """A Python block with few steps; the line numbers stay."""
    for slow, fast in QUICK_PYTHON.items():
        text = re.sub(slow, fast, text)
    return text


@pytest.mark.parametrize("page", pages.PAGES)
def test_commands_stand_in_blocks_that_are_run(page):
    for block in pages.blocks(page):
        first = (block.text.split() or [""])[0]
        assert block.language in ("sh", "bash") or first not in pages.PROGRAMS, f"{page}:{block.line}"
        assert block.language != "bash" or block.file, (
            f"{page}:{block.line}: commands are run where they are sh"
        )


def test_no_exception_outlives_the_command_that_it_was_made_for():
    commands = [command for page in pages.PAGES for block in pages.blocks(page) for command in block.commands]
    for known in NOT_RUN:
        assert any(command.startswith(known) for command in commands), known


def test_a_command_that_is_left_to_another_page_stands_there_too():
    for page, (other, commands) in RUN_THERE.items():
        here, there = (
            [command for block in pages.blocks(one) for command in block.commands] for one in (page, other)
        )
        assert set(commands) <= set(here) & set(there), page
        assert not set(commands) & set(RUN_THERE.get(other, ("", []))[1]), other


def test_a_command_that_nobody_knows_is_no_silent_success(place, monkeypatch, capsys):
    typist = Typist(monkeypatch, capsys)
    for command, message in (
        ("rm -rf runs", "neither run nor listed"),
        ("make nonsense", "neither run nor listed"),
        ("pip install -e '.[nonsense]'", "nonsense"),
        ("cagsr train --config nowhere.yaml", "no such file"),
        ("accelerate launch -m other train", "other"),
    ):
        with pytest.raises(AssertionError, match=message):
            typist.run(command)


def test_shell_scripts_of_the_pages_are_shell(tmp_path):
    scripts = [block for page in pages.PAGES for block in pages.blocks(page) if block.language == "bash"]
    assert scripts
    for block in scripts:
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_config_key_that_a_page_names_exists(page):
    sections = "|".join(Config.model_fields)
    named = re.findall(rf"`((?:{sections})\.[a-z_.\d]+)", pages.text_of(page))
    known = pages.config_keys(Config)
    files = (".py", ".yaml", ".json", ".jsonl", ".html", ".md", ".lock")
    unknown = [key for key in named if not key.endswith(files) and key.rstrip(".") not in known]
    assert unknown == []


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_yaml_block_is_a_config_or_a_part_of_one(page, tmp_path):
    for block in pages.blocks(page):
        if block.language == "yaml":
            (tmp_path / "part.yaml").write_text(block.text)
            missing = [] if "source:" in block.text else ["data.source=prompts.jsonl"]
            missing += [] if re.search(r"\bname:", block.text) else ["model.name=google/flan-t5-small"]
            Config.load(tmp_path / "part.yaml", missing)
