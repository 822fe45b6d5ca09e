"""What a terminal shows of a plan: the parts of each phase, what is not counted, and the peak with what lowers it."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cagsr.config import Config
from cagsr.io.terminal import say
from cagsr.planning.plan import (
    ACTIVATIONS,
    CACHE,
    CASTS,
    COPY,
    GATHERED,
    LOGITS,
    PARTS,
    READ,
    WEIGHTS,
    Plan,
)

__all__ = ["as_json", "first_to_change", "show"]

NOT_COUNTED = (
    "Not counted: Python, torch and its libraries (some 0.3 GB on a CPU, a GPU's own context), tokenizer and data, "
    "loading and saving, models that a reward or a metric loads. Counted for the CPU's kernels: a GPU's AdamW takes "
    "the size of the trained weights once more while it steps, attention there repeats keys and values that heads "
    "share, and log-probabilities take pieces of 64 MB."
)


def show(plan: Plan, config: Config, console: Console) -> None:
    """A table of parts and phases in GB (10^9 bytes), and in one line the peak and what to change first."""
    model, work, count = config.model.name or config.data.task, plan.work, plan.processes
    say(
        console,
        f"{model}, {'one process' if count == 1 else f'each of {count} processes: weights in shards (FSDP2)'}",
    )
    say(
        console,
        f"a pass: {work.prompts} prompts of {work.prompt_tokens} tokens, {work.candidates} responses of "
        f"{work.response_tokens} to each; shorter ones take less",
        style="dim",
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("GB")
    for phase in plan.phases:
        table.add_column(phase.name, justify="right")
    for part in PARTS:
        sizes = [phase.parts.get(part, 0) for phase in plan.phases]
        if any(sizes):
            table.add_row(part, *(_gigabytes(size) if size else "" for size in sizes))
    table.add_section()
    table.add_row("together", *(_gigabytes(phase.total) for phase in plan.phases), style="bold")
    console.print(table)
    say(console, NOT_COUNTED, style="dim")
    say(
        console,
        f"peak: {_gigabytes(plan.peak.total)} GB, {plan.peak.name}; to lower it first: {first_to_change(plan, config)}",
        style="bold",
    )


def as_json(plan: Plan, config: Config) -> dict[str, Any]:
    """The plan in bytes, for ``--json``."""
    return {
        "processes": plan.processes,
        "phases": {phase.name: {**phase.parts, "together": phase.total} for phase in plan.phases},
        "peak": {"phase": plan.peak.name, "bytes": plan.peak.total},
        "change_first": first_to_change(plan, config),
    }


def first_to_change(plan: Plan, config: Config) -> str:
    """The setting that takes most of the largest part of the peak away."""
    peak = plan.peak
    largest = max(peak.parts, key=lambda part: peak.parts[part])
    fewer = "train.micro_batch"
    if peak.name == "sampling":
        fewer = "train.prompts_per_step or sampling.max_new_tokens"
    elif peak.name != "evaluation" and plan.work.prompts == 1:  # a pass has at least one group
        fewer = "sampling.candidates or sampling.max_new_tokens"
    if largest == ACTIVATIONS and peak.name == "update" and not config.train.gradient_checkpointing:
        return "set train.gradient_checkpointing: true"
    if largest in (ACTIVATIONS, LOGITS, READ, CACHE):
        return f"lower {fewer}"
    if largest == COPY:
        return "leave sampling.dtype out"
    if largest == GATHERED and peak.name != "update" and config.train.gather_for_rollouts:
        return "set train.gather_for_rollouts: false"
    if config.model.lora is None:
        return "set model.lora"
    if config.model.dtype == "float32" or largest == CASTS:
        return "set model.dtype: bfloat16"
    writes = config.sampling.engine == "policy" and config.sampling.dtype is None
    if largest == WEIGHTS and plan.processes == 1 and writes:
        return "set model.load_in_4bit: true"
    return f"more processes (FSDP2) than {plan.processes}"


def _gigabytes(size: int) -> str:
    """Bytes in GB: 0.049, 1.23, 12.3, 1,234."""
    gigabytes = size / 1e9
    return f"{gigabytes:,.{max(0, 3 - len(str(int(gigabytes)))) if gigabytes >= 1 else 3}f}"
