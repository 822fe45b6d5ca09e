"""A step of a real model's shape with LoRA, on chats as people write them: rewards side by side, and against TRL."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft import LoraConfig
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.against_trl import COMPACT, CONSTANT, constants
from benchmarks.protocol import Bound, Spread, Taken, cpu, peak_bytes, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.step import PARTS, Clock, noting, shares, watch
from benchmarks.subjects import Shape, step_from, whole_step
from benchmarks.trl_step import TrlStep
from cagsr.config import Config
from cagsr.experiments.instruct_model import FILE, HUB
from cagsr.models.gguf import files_of
from cagsr.models.reference import Reference
from cagsr.tasks.restaurants import RESTAURANTS
from cagsr.types import Observation, Rollout

__all__ = ["CASES", "Case", "Unread", "chats", "floor_flops", "measure", "random_model"]

EXAMPLE = Path(__file__).parents[1] / "examples" / "instruct.yaml"
SHAPE = Shape(layers=30, hidden=576, heads=9, vocabulary=49152, prompts=2, candidates=8, response_tokens=40)
QUICK = replace(SHAPE, layers=4, hidden=36, vocabulary=512, candidates=4, response_tokens=8)
SHARING, WIDE = 3, 8 / 3
"""Query heads for each key head, and width of the feed-forward layer over the hidden one, as SmolLM2 has them."""

FEW = 2
SQUARE, PRODUCTS = 1024, 50
MIB = 2**20
UNREAD = "cagsr, nothing read"
ATTENTION, VALUES, KNOCKOUT = "cagsr, attention", "cagsr, attention-values", "cagsr, robust"
PRESETS = {
    UNREAD: "length",
    "cagsr, coverage": "coverage",
    ATTENTION: "attention",
    VALUES: "attention-values",
    KNOCKOUT: "robust",
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
    "1.6:1": Case((3, 5), 1, tuple(PRESETS), {CONSTANT: 4.0, COMPACT: 2.5}),
    "6:1": Case((5, 7), 5, (UNREAD, ATTENTION, VALUES), {CONSTANT: 7.0, COMPACT: 2.5}),
}
ABOUT = f"""SmolLM2-135M-Instruct (30 layers, hidden 576, vocabulary 49152), %s, with the LoRA adapter of
examples/instruct.yaml; {SHAPE.prompts} chats a step, K = {SHAPE.candidates} responses of T = {SHAPE.response_tokens}
tokens each, no response ends early. The chats ask for a description of restaurants with their facts, in the model's
own template, and are of unequal length (%s). One optimizer step on all of them in one forward pass.

- **{CONSTANT}**, **{COMPACT}**: as above, with PEFT's LoRA of the same settings and a reward that costs nothing.
- **{UNREAD}**: the reward is the response's length, and the reference gives log-probabilities for the KL penalty and
  nothing else: what a step costs whose reward looks at nothing.
- the others are presets. `attention` and `attention-values` read {LEARNT} heads of a file, as many as are learnt;
  `robust` asks the observer again for each of a prompt's pieces. It is measured at the shorter prompts only.

**Floor** is the time that the products alone would take at the rate of two {SQUARE} x {SQUARE} matrices (%s): each
token once in sampling and scoring, and twice in training, because frozen weights need no gradient. A turn before the
first, in which memory is counted, warms up."""


class Unread(Reference):
    """A reference that tells log-probabilities and nothing else."""

    def observe(self, rollout: Rollout) -> Observation:
        logprobs = super().logprobs(rollout)
        nothing = torch.zeros_like(logprobs)
        on_prompt = nothing.new_zeros(*logprobs.shape, rollout.prompt_ids.shape[1])
        return Observation(on_prompt, logprobs, nothing, nothing, nothing, on_prompt)


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
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
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


def config_of(shape: Shape, preset: str, model: Path, own: Path) -> Config:
    settings = {
        "model.name": model,
        "data.source": own / "prompts.jsonl",
        "data.holdout_column": "null",
        "sampling.candidates": shape.candidates,
        "sampling.temperature": 1.0,
        "sampling.max_new_tokens": shape.response_tokens,
        "sampling.min_new_tokens": shape.response_tokens,
        "reward.preset": preset,
        "train.prompts_per_step": shape.prompts,
        "train.micro_batch": shape.prompts * shape.candidates,
        "train.learning_rate": 1e-6,
    }
    if preset.startswith("attention"):
        settings["reward.heads"] = own / "heads.json"
    return Config.load(EXAMPLE, [f"{key}={value}" for key, value in settings.items()])


@dataclass
class Measured:
    """Of one case: turns, seconds by part, peak bytes by way, and the prompts' tokens."""

    taken: dict[str, list[Taken]]
    parts: dict[str, list[dict[str, float]]]
    peaks: dict[str, int]
    lengths: list[int]


def measure_case(case: Case, shape: Shape, plan: Plan) -> Measured:
    with subject(shape, case, plan.quick) as (model, own), ExitStack() as stack:
        ways: dict[str, Callable[[], object]] = {}
        parts: dict[str, list[dict[str, float]]] = {}
        lengths: list[int] = []
        adapter = None
        for name in case.ways:
            config = config_of(shape, PRESETS[name], model, own)
            adapter = config.model.lora
            step, prompts = step_from(config)
            if name == UNREAD:
                step.reference = step.observer = Unread(step.policy)
            used, clock = prompts[: shape.prompts], Clock()
            lengths = [len(prompt.ids) for prompt in used]
            watch(step, clock)
            parts[name] = []
            ways[name] = noting(clock, parts[name], clock.timed("row", whole_step), step, used)
        assert adapter is not None, "the example trains an adapter"
        trl = TrlStep(
            shape,
            model,
            constants,
            prompts=chats(case)[: shape.prompts],
            adapter=LoraConfig(
                r=adapter.r, lora_alpha=adapter.alpha, target_modules=adapter.target_modules, lora_dropout=0.0
            ),
            output=own / "trl",
        )
        stack.callback(trl.end)

        def of_trl(compact: bool) -> None:
            trl.compact = compact
            trl()

        ways |= {CONSTANT: partial(of_trl, False), COMPACT: partial(of_trl, True)}
        peaks = {name: peak_bytes(work) for name, work in ways.items()}
        ways["matrix"] = partial(_products, torch.rand(SQUARE, SQUARE), torch.rand(SQUARE, SQUARE))
        return Measured(take_turns(ways, min(plan.rounds, FEW), warm=True), parts, peaks, lengths)


def _products(left: Tensor, right: Tensor) -> None:
    for _ in range(PRODUCTS):
        torch.mm(left, right)


def measure(plan: Plan) -> Part:
    shape = QUICK if plan.quick else SHAPE
    found = {name: measure_case(case, shape, plan) for name, case in CASES.items()}
    rates = [PRODUCTS * 2 * SQUARE**3 / spread(cpu(each.taken["matrix"])).median for each in found.values()]
    where = "random weights" if plan.quick or cached_model() is None else "a rounded (Q4_1) copy in float32"
    tokens = "; ".join(
        f"{' and '.join(map(str, each.lengths))} tokens for S:T = {name}" for name, each in found.items()
    )
    about = ABOUT % (where, tokens, ", ".join(f"{rate / 1e9:.0f} GFLOP/s" for rate in rates))
    rows = [
        row
        for (name, each), rate in zip(found.items(), rates, strict=True)
        for row in _rows(name, each, floor_flops(shape, each.lengths) / rate)
    ]
    turns = {f"{name}: {way}": taken for name, each in found.items() for way, taken in each.taken.items()}
    columns = ["S:T", "Way", "Seconds", f"this / {UNREAD}", f"{CONSTANT} / this", f"{COMPACT} / this"]
    tables = [
        Table("", [*columns, "Times the floor", "Memory"], rows),
        Table("Percent of the step:", ["S:T", "Way", *PARTS], _share_rows(found)),
    ]
    return Part("A real model's step", about, tables, _bounds(found), turns)


def _rows(name: str, measured: Measured, floor: float) -> list[list[str]]:
    taken = measured.taken
    return [
        [
            name,
            way,
            spread(cpu(each)).text(),
            ratios(cpu(each), cpu(taken[UNREAD])).text(),
            *(ratios(cpu(taken[trl]), cpu(each)).text() for trl in (CONSTANT, COMPACT)),
            f"{spread(cpu(each)).median / floor:.1f}x",
            f"{measured.peaks[way] / MIB:.0f} MiB",
        ]
        for way, each in taken.items()
        if way in measured.peaks
    ]


def _share_rows(found: Mapping[str, Measured]) -> list[list[str]]:
    return [
        [name, way, *(spread(shares(kept, part)).text(1) for part in PARTS)]
        for name, each in found.items()
        for way, kept in each.parts.items()
    ]


def _bounds(found: Mapping[str, Measured]) -> list[Bound]:
    bounds = []
    for name, each in found.items():
        taken = each.taken
        faster = {trl: ratios(cpu(taken[trl]), cpu(taken[ATTENTION])) for trl in (CONSTANT, COMPACT)}
        bounds += [
            Bound(
                f"SmolLM2, {ATTENTION} against {trl}, S:T = {name}: times faster",
                "least",
                limit,
                faster[trl],
                "x",
            )
            for trl, limit in CASES[name].faster.items()
        ]
        over = ratios(cpu(taken[ATTENTION]), cpu(taken[UNREAD]))
        memory = each.peaks[ATTENTION] / each.peaks[CONSTANT]
        bounds += [
            Bound(f"SmolLM2, {ATTENTION} against {UNREAD}, S:T = {name}: time", "most", 1.05, over, "x"),
            Bound(
                f"SmolLM2, {ATTENTION} against {CONSTANT}, S:T = {name}: memory",
                "most",
                0.33,
                Spread(memory, memory, memory),
                "x",
            ),
        ]
    return bounds
