"""Going on with another config, model, data set or code is refused by the name of what changed.

Each item changes one thing about a run that was stopped half-way; the answer must name it and nothing else, the run
must stay as it was, and without the change it must still go on.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from safetensors.torch import load_file, save_file

import runs
from cagsr.tasks.task import split_of
from cagsr.training.loop import TrainingLoop
from cases import CASES, TASK, Workshop

TITLE = "going on with something else is refused by name"
PROMISE = 7
SHARDS = False

# What is changed -> the fields that the refusal names.
SETTINGS = {
    "data.count=12": {"data.count"},
    "data.seed=3": {"data.seed"},
    "data.evaluation_count=4": {"data.evaluation_count"},
    "data.max_prompt_tokens=40": {"data.max_prompt_tokens"},
    "data.overlong=drop": {"data.overlong"},
    "data.skip_invalid=true": {"data.skip_invalid"},
    "sampling.candidates=2": {"sampling.candidates"},
    "sampling.temperature=0.9": {"sampling.temperature"},
    "sampling.top_k=20": {"sampling.top_k"},
    "sampling.top_p=0.9": {"sampling.top_p"},
    "sampling.max_new_tokens=6": {"sampling.max_new_tokens"},
    "sampling.min_new_tokens=2": {"sampling.min_new_tokens"},
    "reward.preset=lexical": {"reward.preset", "reward"},
    "reward.terms=[{signal: length}]": {"reward.terms", "reward"},
    "reward.observer=policy": {"reward.observer"},
    "reward.layers=last": {"reward.layers"},
    "reward.salience.kind=idf": {"reward.salience.kind"},
    "algorithm.name=rloo": {"algorithm.name"},
    "algorithm.kl_coefficient=0.1": {"algorithm.kl_coefficient"},
    "algorithm.kl_target=0.6": {"algorithm.kl_target"},
    "algorithm.kl_placement=reward": {"algorithm.kl_placement"},
    "algorithm.loss.options={clip: 0.3}": {"algorithm.loss.options"},
    "algorithm.epochs=3": {"algorithm.epochs"},
    "algorithm.minibatches=1": {"algorithm.minibatches"},
    "algorithm.loss_normalisation=sequence": {"algorithm.loss_normalisation"},
    "algorithm.entropy_coefficient=0.01": {"algorithm.entropy_coefficient"},
    "train.steps=6": {"train.steps"},
    "train.prompts_per_step=2": {"train.prompts_per_step"},
    "train.micro_batch=3": {"train.micro_batch"},
    "train.learning_rate=0.02": {"train.learning_rate"},
    "train.schedule=linear": {"train.schedule"},
    "train.warmup_steps=1": {"train.warmup_steps"},
    "train.weight_decay=0.1": {"train.weight_decay"},
    "train.max_grad_norm=2.0": {"train.max_grad_norm"},
    "train.seed=1": {"train.seed"},
    "train.gradient_checkpointing=true": {"train.gradient_checkpointing"},
    "train.mixed_precision=bf16": {"train.mixed_precision"},
    "train.evaluate_every=1": {"train.evaluate_every"},
    "watch.kl.limit=2.0": {"watch.kl.limit"},
    "watch.shuffled_every=2": {"watch.shuffled_every"},
}


def _weights(cwd: Path) -> None:
    path = _own(cwd, "llama") / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 0.001
    save_file(weights, path, metadata={"format": "pt"})


def _tokenizer(cwd: Path) -> None:
    path = _own(cwd, "llama") / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 63}))


def _row(cwd: Path) -> None:
    path = _own(cwd, "rows.jsonl")
    path.write_text(path.read_text().replace("alba", "cleo", 1))


def _reference(cwd: Path) -> None:
    path = _own(cwd, "rows.jsonl")
    path.write_text(path.read_text().replace("plays in", "sings in"))


def _held_out(cwd: Path) -> None:
    path = _own(cwd, "rows.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if split_of(row["prompt"]) == "development":
            row["reference"] = "somewhere else ."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _t5(cwd: Path) -> None:
    (cwd / "llama").unlink()
    (cwd / "llama").symlink_to((cwd / "t5").resolve())


def _own(cwd: Path, name: str) -> Path:
    """The run's own copy of a model or file that it shares with the others."""
    path = cwd / name
    source = path.resolve()
    path.unlink()
    shutil.copytree(source, path) if source.is_dir() else shutil.copy(source, path)
    return path


CONTENT: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "other weights under the same name": (_weights, {"model"}),
    "another tokenizer under the same name": (_tokenizer, {"tokenizer and model config"}),
    "another row in the file": (_row, {"data"}),
    "another reference in the file": (_reference, {"data", "evaluation data"}),
    "another held-out row in the file": (_held_out, {"evaluation data"}),
    "another model": (_t5, {"model", "tokenizer and model config"}),
}
# Planted in the process: what another installation would say of itself.
WORLD = {
    "another version of cagsr": ("code", lambda: "0" * 64, {"code of cagsr"}),
    "another torch": ("versions", lambda: {"torch": "2.12.0"}, {"torch"}),
    "another transformers": ("versions", lambda: {"transformers": "5.0.0"}, {"transformers"}),
    "another Python": ("versions", lambda: {"python": "3.13.1"}, {"python"}),
}
ITEMS = [*SETTINGS, *CONTENT, *WORLD]
COUNT = len(ITEMS)
CASE = CASES["GRPO, Llama, file"]
GENERATED = ("model.name=llama", "algorithm.name=grpo", *TASK, *CASE.settings[4:])


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The changes, out of ``count``, that were not refused by their names, or harmed the run."""
    workshop, failures = Workshop.open(), []
    halves = {}
    for number, settings in enumerate((CASE.settings, GENERATED)):
        halves[settings] = workshop.fresh(number)
        run = runs.start(["train", *settings], halves[settings], before=stop_after_a_step)
        assert run.wait() == 75, run.err
    items = ITEMS if count >= COUNT else random.sample(ITEMS, count)
    for number, item in enumerate(items, start=10):
        settings = GENERATED if item.startswith(("data.count", "data.seed")) else CASE.settings
        cwd = workshop.fresh(number)
        shutil.copytree(halves[settings] / "run", cwd / "run")
        problem = refused(cwd, settings, item)
        failures += [f"{item}: {problem}"] if problem else []
        advance()
    return failures


def stop_after_a_step() -> None:
    import os
    import signal

    after = TrainingLoop._after

    def stopping(trainer: TrainingLoop, step: int, collapsed: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        after(trainer, step, collapsed)

    TrainingLoop._after = stopping  # type: ignore[method-assign]


def elsewhere(item: str) -> None:
    from cagsr.runs import identity

    name, value, _ = WORLD[item]
    setattr(identity, name, value)


def refused(cwd: Path, settings: tuple[str, ...], item: str) -> str:
    from functools import partial

    before, changed, names = None, [], set[str]()
    if item in SETTINGS:
        changed, names = [item], SETTINGS[item]
    elif item in CONTENT:
        change, names = CONTENT[item]
        change(cwd)
    else:
        before, names = partial(elsewhere, item), WORLD[item][2]
    was = _tree(cwd / "run")
    run = runs.start(["train", *settings, *changed, "--resume"], cwd, before=before)
    code = run.wait(300)
    lines = [line.strip() for line in run.err.splitlines() if line.startswith("  ")]
    named = {line.split(": ")[0] for line in lines}
    if code != 2 or "was started with something else" not in run.err:
        return f"ended with {code}: {run.err.strip()[-300:]}"
    if named != names:
        return f"named {sorted(named)}, not {sorted(names)}"
    return "" if _tree(cwd / "run") == was else "the run was changed"


def _tree(run: Path) -> dict[str, bytes]:
    """Every file with its content, but for who holds the lock."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }
