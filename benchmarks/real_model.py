"""A step of a real model's shape: SmolLM2 where it is, chats as people write them, and ways to take the step."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.against_trl import COMPACT, CONSTANT
from benchmarks.subjects import Shape, step_from
from cagsr.config import Config
from cagsr.experiments.instruct_model import FILE, HUB
from cagsr.models.gguf import files_of
from cagsr.models.reference import Reference
from cagsr.tasks.restaurants import RESTAURANTS
from cagsr.training.step import Step
from cagsr.types import EVERYTHING, Observation, Prompt, Rollout, Wanted

__all__ = [
    "ATTENTION",
    "CASES",
    "LEARNT",
    "QUICK",
    "ROUNDED",
    "SHAPE",
    "UNREAD",
    "WAYS",
    "WRITING",
    "Case",
    "Unread",
    "Way",
    "build",
    "cached_model",
    "chats",
    "config_of",
    "floor_flops",
    "heads_of",
    "subject",
]

EXAMPLE = Path(__file__).parents[1] / "examples" / "instruct.yaml"
SHAPE = Shape(layers=30, hidden=576, heads=9, vocabulary=49152, prompts=2, candidates=8, response_tokens=40)
QUICK = replace(SHAPE, layers=4, hidden=36, vocabulary=512, candidates=4, response_tokens=8)
SHARING, WIDE = 3, 8 / 3
"""Query heads for each key head, and width of the feed-forward layer over the hidden one, as SmolLM2 has them."""

UNREAD = "cagsr, nothing read"
ATTENTION, KNOCKOUT = "cagsr, attention", "cagsr, knockout"
WRITING, ROUNDED = "attention, bfloat16 writes", "attention, bfloat16"


@dataclass(frozen=True)
class Way:
    """A step of ours: its preset, settings beside it, and whether its passes are autocast to bfloat16."""

    preset: str
    settings: tuple[str, ...] = ()
    autocast: bool = False


WRITES = ("sampling.dtype=bfloat16",)
WAYS = {
    UNREAD: Way("length"),
    "cagsr, coverage": Way("coverage"),
    ATTENTION: Way("attention"),
    "cagsr, attention-values": Way("attention-values"),
    KNOCKOUT: Way("knockout"),
    WRITING: Way("attention", WRITES),
    ROUNDED: Way("attention", WRITES, autocast=True),
}
LEARNT = 24


@dataclass(frozen=True)
class Case:
    """Prompts of one length: facts of the two prompts, in how many restaurants, and what is promised at that length.

    faster  times that the preset ``attention`` is faster than TRL, by TRL's way.
    """

    facts: tuple[int, int]
    restaurants: int
    ways: tuple[str, ...]
    faster: Mapping[str, float]


CASES = {
    "1.6:1": Case((3, 5), 1, tuple(WAYS), {CONSTANT: 4.0, COMPACT: 2.5}),
    "6:1": Case((5, 7), 5, (UNREAD, ATTENTION, ROUNDED), {CONSTANT: 7.0, COMPACT: 2.5}),
}


class Unread(Reference):
    """A reference that tells log-probabilities and nothing else."""

    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation:
        logprobs = super().logprobs(rollout)
        nothing = torch.zeros_like(logprobs)
        on_prompt = nothing.new_zeros(*logprobs.shape, rollout.prompt_ids.shape[1])
        return Observation(logprobs, nothing, nothing, nothing, {"attention": on_prompt})


def chats(case: Case, count: int = 24) -> list[list[dict[str, str]]]:
    """The two prompts of a case, and others after them, from which a value can be exchanged for another."""
    random = Random(0)
    facts = [*case.facts, *(random.randint(3, 7) for _ in range(count - 2))]
    made = []
    for number in facts:
        rows = [_row(random, number) for _ in range(case.restaurants)]
        text = "\n".join([rows[0]["prompt"][0]["content"], *(_facts(row) for row in rows[1:])])
        made.append([{"role": "user", "content": text}])
    return made


def _row(random: Random, facts: int) -> dict[str, Any]:
    """A restaurant of so many facts beside its name."""
    while True:
        row = RESTAURANTS.draw(random)
        if len(row["slots"]) == facts + 1:
            return row


def _facts(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{field}: {value}" for field, value in row["slots"])


def floor_flops(shape: Shape, lengths: list[int]) -> float:
    """The multiplications and additions of a LoRA step of SmolLM2's proportions, for prompts of ``lengths`` tokens."""
    n, t, h = shape.prompts * shape.candidates, shape.response_tokens, shape.hidden
    # Projections of queries, outputs, keys and values, and the three of the feed-forward layer.
    linear = 2 * h * h * (2 + 2 / SHARING + 3 * WIDE) * (sum(lengths) + n * t)
    pairs = sum(s * (s + 1) / 2 + shape.candidates * (t * s + t * (t + 1) / 2) for s in lengths)
    head = 2 * h * shape.vocabulary * n * t
    return 4 * (shape.layers * (linear + 4 * h * pairs) + head)


def cached_model() -> Path | None:
    """Directory of SmolLM2's weights where `cagsr demo --model instruct` left them; None where they are not here."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cagsr", FILE)
    if cached.is_file():
        return Path(files_of(str(cached)))
    found = try_to_load_from_cache(HUB, "model.safetensors")
    return Path(found).parent if isinstance(found, str) else None


def random_model(shape: Shape, directory: Path) -> Path:
    """Random weights of the shape and a tokenizer with a chat template, saved in ``directory``."""
    texts = [chat[0]["content"] for case in CASES.values() for chat in chats(case)]
    backend = ByteLevelBPETokenizer()
    ends = ["<|im_start|>", "<|im_end|>"]
    backend.train_from_iterator(texts, vocab_size=512, special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer, eos_token=ends[1], pad_token=ends[1], bos_token=ends[0]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=round(shape.hidden * WIDE),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // SHARING,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5.0)  # away from uniform, so that responses and attention differ
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def heads_of(shape: Shape) -> dict[int, list[float]]:
    """Three heads of every second layer from the fifth part of the depth on: which are read is no matter of time."""
    layers = range(shape.layers // 5, shape.layers, 2)[: LEARNT // 3]
    return {layer: [float(head < 3) for head in range(shape.heads)] for layer in layers}


@contextmanager
def subject(shape: Shape, case: Case, quick: bool) -> Iterator[tuple[Path, Path]]:
    """The model's directory, and one for what is written, with prompts.jsonl and heads.json in it."""
    with TemporaryDirectory() as name:
        own = Path(name)
        model = None if quick else cached_model()
        rows = [json.dumps({"prompt": chat}) for chat in chats(case)]
        (own / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (own / "heads.json").write_text(json.dumps({"weights": heads_of(shape)}), encoding="utf-8")
        yield model or random_model(shape, own), own


def config_of(shape: Shape, way: Way, model: Path, own: Path) -> Config:
    settings = {
        "model.name": model,
        "data.source": own / "prompts.jsonl",
        "data.holdout_column": "null",
        "sampling.candidates": shape.candidates,
        "sampling.temperature": 1.0,
        "sampling.max_new_tokens": shape.response_tokens,
        "sampling.min_new_tokens": shape.response_tokens,
        "reward.preset": way.preset,
        "train.prompts_per_step": shape.prompts,
        "train.micro_batch": shape.prompts * shape.candidates,
        "train.learning_rate": 1e-6,
    }
    if way.preset.startswith("attention"):
        settings["reward.heads"] = own / "heads.json"
    return Config.load(EXAMPLE, [*(f"{key}={value}" for key, value in settings.items()), *way.settings])


def build(name: str, shape: Shape, model: Path, own: Path) -> tuple[Step, list[Prompt]]:
    """The step of one of `WAYS` by its name, and its prompts."""
    way = WAYS[name]
    step, prompts = step_from(config_of(shape, way, model, own))
    if name == UNREAD:
        step.reference = step.observer = Unread(step.policy)
    if way.autocast:
        # As Accelerate does it with mixed precision, which is one for all steps of a process.
        step.accelerator.autocast = partial(torch.autocast, "cpu", torch.bfloat16)
        step.policy.forward = torch.autocast("cpu", torch.bfloat16)(step.policy.forward)
    return step, prompts[: shape.prompts]
