"""Rollout buffer on disk: the experience of an unfinished step, so that its remaining epochs train on the same bits.

Without it a run could go on from whole steps only. The weights that wrote these responses are gone once the first
optimizer step of an epoch is taken, so they cannot be sampled again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cagsr.training.attention_summary import Look
from cagsr.training.step import Collected
from cagsr.types import Prompt, Rollout, Scores, TrainBatch

__all__ = ["load_buffer", "save_buffer"]

OF_ROLLOUT = ("prompt_ids", "prompt_mask", "response_ids", "response_mask", "finished")
OF_SCORES = ("signals", "reward", "weighted")
OF_LOOK = ("attended", "weights", "columns", "pieces", "nats", "looked")
OF_BATCH = ("old_logprobs", "ref_logprobs", "entropy", "values", "advantages", "returns")


def save_buffer(collected: Collected, directory: Path, rank: int) -> None:
    """Write one process's part of the buffer as ``buffer-RANK.safetensors`` and ``.json``."""
    rollout, scores = collected.rollout, collected.scores
    tensors = {name: getattr(rollout, name) for name in OF_ROLLOUT}
    if rollout.sampled_logprobs is not None:
        tensors["sampled_logprobs"] = rollout.sampled_logprobs
    tensors |= {name: getattr(scores, name) for name in OF_SCORES}
    for of, names in ((collected.batches, OF_BATCH), (collected.attended, OF_LOOK)):
        for number, part in enumerate(of):
            given = {f"{number}.{name}": getattr(part, name) for name in names}
            tensors |= {name: value for name, value in given.items() if value is not None}
    # Copies, because safetensors refuses tensors that share memory, as parts of one rollout may.
    save_file(
        {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
        _tensors(directory, rank),
    )
    about = {
        "prompts": [[prompt.index, prompt.occurrence] for prompt in rollout.prompts],
        "responses": rollout.responses,
        "names": scores.names,
        "groups": [len(batch.rollout.prompts) for batch in collected.batches],
    }
    _texts(directory, rank).write_text(json.dumps(about), encoding="utf-8")


def load_buffer(directory: Path, rank: int, prompts: Sequence[Prompt], device: torch.device) -> Collected:
    """Load what `save_buffer` wrote; ``prompts`` are those of the step, in any order."""
    tensors = {name: value.to(device) for name, value in load_file(_tensors(directory, rank)).items()}
    about = json.loads(_texts(directory, rank).read_text(encoding="utf-8"))
    known = {(prompt.index, prompt.occurrence): prompt for prompt in prompts}
    rollout = Rollout(
        prompts=[known[index, occurrence] for index, occurrence in about["prompts"]],
        responses=about["responses"],
        sampled_logprobs=tensors.get("sampled_logprobs"),
        **{name: tensors[name] for name in OF_ROLLOUT},
    )
    batches, attended, first = [], [], 0
    for number, groups in enumerate(about["groups"]):
        part = rollout.groups(first, first + groups)
        fields = {name: tensors.get(f"{number}.{name}") for name in OF_BATCH}
        batches.append(TrainBatch(part, **fields))  # type: ignore[arg-type]
        if f"{number}.attended" in tensors:
            attended.append(Look(**{name: tensors.get(f"{number}.{name}") for name in OF_LOOK}))  # type: ignore[arg-type]
        first += groups
    scores = Scores(tuple(about["names"]), **{name: tensors[name] for name in OF_SCORES})
    return Collected(rollout, scores, batches, attended)


def _tensors(directory: Path, rank: int) -> Path:
    return directory / f"buffer-{rank}.safetensors"


def _texts(directory: Path, rank: int) -> Path:
    return directory / f"buffer-{rank}.json"
