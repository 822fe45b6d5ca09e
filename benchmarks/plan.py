"""What `cagsr plan` says against what a step takes, and what it says of models that are not here: docs/plan.json.

    python -m benchmarks.plan                    # all of it, a quarter of an hour on a slow core
    python -m benchmarks.plan --only measured    # or sizes
    python -m benchmarks.plan --only measured --case NAME    # of the others what the record has

A step is measured in a process of its own, its second one: the peak of what torch allocates (its profiler), beyond
weights, reference and moments, which are counted; and the peak of the process in main memory.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from transformers import LlamaConfig

from benchmarks.memory import bytes_of, everything, resident
from benchmarks.protocol import peak_bytes
from benchmarks.results import Record, as_text, read
from benchmarks.subjects import Shape, config_of, saved, step_from, whole_step
from cagsr.config import Config
from cagsr.io.quiet_libraries import silence_libraries
from cagsr.models.casts import casts_kept
from cagsr.planning import plan
from cagsr.training.step import Step
from cagsr.types import Prompt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "plan.json"
MB, GB = 1e6, 1e9


class Even(Shape):
    """A shape whose prompts are all of S tokens, but the last one, which has one less."""

    @property
    def lengths(self) -> list[int]:
        return [*[self.prompt_tokens] * (self.prompts - 1), self.prompt_tokens - (self.prompts > 1)]


SHAPE = Even()


@dataclass(frozen=True)
class Case:
    """A configuration: what differs from a step of all weights in one pass."""

    shape: Shape = SHAPE
    preset: str = "coverage"
    settings: tuple[str, ...] = ()


LORA, BFLOAT16 = "model.lora={r: 8}", "model.dtype=bfloat16"
CHECKPOINTING, AUTOCAST = "train.gradient_checkpointing=true", "train.mixed_precision=bf16"
LONG_PROMPTS = Even(prompts=2, candidates=4, prompt_tokens=1021, response_tokens=16)
LONG_RESPONSES = Even(prompts=2, candidates=16, prompt_tokens=31, response_tokens=191)
# bfloat16 is multiplied a hundred times slower than float32 by a processor that cannot.
NARROW = Even(
    layers=5, hidden=128, vocabulary=4001, prompts=2, candidates=4, prompt_tokens=61, response_tokens=23
)
MANY_PROMPTS = Even(
    layers=5, hidden=128, vocabulary=503, prompts=24, candidates=4, prompt_tokens=191, response_tokens=29
)
LARGE = Even(
    layers=12,
    hidden=768,
    heads=12,
    vocabulary=32003,
    prompts=2,
    candidates=4,
    prompt_tokens=61,
    response_tokens=16,
)
CASES: Mapping[str, Case] = {
    "all weights": Case(),
    "all weights, gradient checkpointing": Case(settings=(CHECKPOINTING,)),
    "all weights, four passes": Case(settings=("train.micro_batch=8",)),
    "all weights, autocast to bfloat16": Case(NARROW, settings=(AUTOCAST,)),
    "PPO, the policy observes itself": Case(settings=("algorithm.name=ppo", "reward.observer=policy")),
    "LoRA": Case(settings=(LORA,)),
    "LoRA on bfloat16, gradient checkpointing": Case(NARROW, settings=(LORA, BFLOAT16, CHECKPOINTING)),
    "LoRA, knockout": Case(preset="knockout", settings=(LORA,)),
    "LoRA, prompts of 1021 tokens": Case(LONG_PROMPTS, settings=(LORA, CHECKPOINTING)),
    "LoRA, 16 responses of 191 tokens": Case(LONG_RESPONSES, settings=(LORA, CHECKPOINTING)),
    "LoRA, 24 prompts of 191 tokens in 24 passes": Case(MANY_PROMPTS, settings=(LORA, "train.micro_batch=4")),
    "110 million weights, all": Case(LARGE, settings=(CHECKPOINTING,)),
    "110 million weights, LoRA": Case(LARGE, settings=(LORA,)),
}

LLAMAS: Mapping[str, dict[str, Any]] = {
    "1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
PROCESSES = (1, 8, 64)
TRAINED = {
    "all weights": (AUTOCAST, CHECKPOINTING),
    "LoRA": ("model.lora={r: 16}", BFLOAT16, CHECKPOINTING),
}
STEP = (
    "data.source=prompts.jsonl",
    "data.max_prompt_tokens=512",
    "sampling.max_new_tokens=256",
    "reward.preset=coverage",
    "train.micro_batch=8",
)


def measure(case: Case) -> dict[str, Any]:
    """Bytes at most, by phase: ``planned`` and ``allocated``; and ``resident``, of the process in a whole step."""
    shape = case.shape
    with saved(shape) as directory:
        longest = f"data.max_prompt_tokens={shape.prompt_tokens}"
        config = config_of(shape, directory, case.preset, longest, *case.settings)
        planned = plan(config)
        accelerator = Accelerator(cpu=True, mixed_precision=config.train.mixed_precision)
        step, prompts = step_from(config, accelerator=accelerator)
        whole_step(step, prompts)  # moments, and all that is imported or kept on the way
        copied = [] if step.reference.copy is None else step.reference.copy.parameters()
        held = bytes_of([*everything(step), *copied])
        gc.collect()
        others = resident("VmRSS") - held
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak until now
        whole_step(step, prompts, seed=1)
        at_most = resident("VmHWM") - others
        allocated = {name: held + peak_bytes(work) for name, work in _phases(step, prompts).items()}
    return {
        "planned": {phase.name: phase.total for phase in planned.phases},
        "allocated": allocated,
        "resident": at_most,
    }


def _phases(step: Step, prompts: list[Prompt]) -> dict[str, Callable[[], object]]:
    """The phases of a step, to be called in their order."""
    found: dict[str, Any] = {}

    @torch.no_grad()
    def sample() -> None:
        with step.accelerator.autocast(), casts_kept(step.policy.model):
            found["rollout"], found["seen"] = step._sample(prompts, 2)

    def observe() -> None:
        found["collected"] = step.experience(**found)

    return {
        "sampling": sample,
        "observing": observe,
        "update": lambda: step.update(found["collected"].batches),
    }


def measured_part(record: Record, cases: Sequence[str]) -> dict[str, Any]:
    # What is freed is given back at once.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = {row[0]: row for row in record.get("measured", {"rows": []})["rows"]}
    for name in cases:
        command = [sys.executable, "-m", "benchmarks.plan", "--alone", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
        found[name] = _row(name, **json.loads(done.stdout.splitlines()[-1]))
        print(*found[name], sep=" | ", flush=True)
    columns = ["configuration", "peak in", "planned, MB", "allocated, MB", "process, MB"]
    columns += ["planned / allocated", "in sampling", "in observing", "in update"]
    rows = [found[name] for name in CASES if name in found]
    of_peaks = [float(row[5]) for row in rows]
    of_phases = [float(ratio) for row in rows for ratio in row[6:]]
    return {
        "command": "python -m benchmarks.plan --only measured",
        "least": min(of_peaks),
        "most": max(of_peaks),
        "least of a phase": min(of_phases),
        "most of a phase": max(of_phases),
        "columns": columns,
        "rows": rows,
    }


def _row(name: str, planned: dict[str, int], allocated: dict[str, int], resident: int) -> list[str]:
    peaks = max(planned.values()), max(allocated.values()), resident
    ratios = peaks[0] / peaks[1], *(planned[phase] / allocated[phase] for phase in allocated)
    peak_in = max(planned, key=lambda phase: planned[phase])
    return [name, peak_in, *(f"{one / MB:.1f}" for one in peaks), *(f"{ratio:.3f}" for ratio in ratios)]


def sizes_part(_: Record, __: Sequence[str]) -> dict[str, Any]:
    rows = []
    with TemporaryDirectory() as name:
        for model, shape in LLAMAS.items():
            config = LlamaConfig(**shape, num_key_value_heads=8, max_position_embeddings=8192)
            config.save_pretrained(f"{name}/{model}")
            for trained, settings in TRAINED.items():
                for processes in PROCESSES:
                    rows.append(
                        [model, trained, str(processes), *_sizes(f"{name}/{model}", settings, processes)]
                    )
                    print(*rows[-1], sep=" | ", flush=True)
    columns = [
        "model",
        "trained",
        "processes",
        "lasting",
        "sampling",
        "observing",
        "update",
        "a block at a time",
    ]
    return {"command": "python -m benchmarks.plan --only sizes", "columns": columns, "rows": rows}


def _sizes(name: str, settings: tuple[str, ...], processes: int) -> list[str]:
    """GB: what lasts, each phase, and the peak with a block gathered at a time."""
    given = [*STEP, *settings, f"model.name={name}", f"train.prompts_per_step={max(8, processes)}"]
    found = plan(Config.load(None, given), processes)
    lasting = ("weights", "reference", "optimizer moments")
    sizes = [sum(found.peak.parts.get(part, 0) for part in lasting), *(phase.total for phase in found.phases)]
    if processes > 1:
        sizes.append(
            plan(Config.load(None, [*given, "train.gather_for_rollouts=false"]), processes).peak.total
        )
    texts = [f"{size / GB:.{2 if size < 10 * GB else 1 if size < 100 * GB else 0}f}" for size in sizes]
    return [*texts, *[""] * (processes == 1)]


PARTS = {"measured": measured_part, "sizes": sizes_part}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), metavar="NAME")
    parser.add_argument("--alone", choices=CASES, help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    silence_libraries()
    torch.set_num_threads(1)
    if options.alone:
        print(json.dumps(measure(CASES[options.alone])))
        return
    for name in options.only:
        record = read(RESULTS)
        record[name] = PARTS[name](record, options.case)
        RESULTS.write_text(as_text(record), encoding="utf-8")


if __name__ == "__main__":
    main()
