"""A model computes among others what it computes alone, or is refused: every architecture that transformers has.

Each is made tiny, with random weights, and loaded as a Python program loads its own: `models.proof` chooses how it is
computed or refuses it. What it then samples, scores and observes, prompts of random lengths beside longer ones and past
each limit, in evaluation mode and while gradient checkpointing recomputes, is compared with the same weights in
float64: eager attention, one unpadded row at a time. A refusal needs a reason; a difference is a failure.
"""

import copy
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

import shrunken
from cagsr.config.schema import Sampling
from cagsr.errors import UnsupportedModelError
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from cagsr.tasks import TASKS, tokenizer
from cagsr.types import Prompt, Rollout

TITLE = "a model computes among others what it computes alone"
PROMISE = 18
SHARDS = False
COUNT = len(shrunken.NAMES)

TABLE = Path(__file__).parents[1] / "docs" / "architectures.json"
TOLERANCE = 1e-3
"""Nats, as a share of the largest absolute log-probability; and of attention, in [0, 1]."""
SECONDS = 120
"""What one architecture may take."""
LONGEST, WRITTEN = 29, 7


def prove(count: int, random: Random, advance: Callable[..., None]) -> list[str]:
    """The architectures, out of ``count`` spread over all, that disagree or fail without a reason."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    failures, rows = [], []
    for number in range(min(count, COUNT)):
        name = shrunken.NAMES[number * COUNT // min(count, COUNT)]
        row = verdict(name, random)
        rows.append(row)
        failures += [f"{name}: {row['reason']}"] if row["verdict"] == "disagrees" else []
        advance(**{row["verdict"]: 1})
    if len(rows) == COUNT:
        TABLE.write_text(json.dumps(rows, indent=1) + "\n")
    return failures


def figures(sums: dict[str, int]) -> str:
    return f"{sums['agrees']} agree, {sums['refused']} refused by name, {sums['not made']} not made tiny"


def verdict(name: str, random: Random) -> dict[str, Any]:
    """One row of the table: agrees (within ``nats``), refused, disagrees, or not made; how it computes, and why."""
    row: dict[str, Any] = {"architecture": name}
    try:
        with _limited(SECONDS):
            torch.manual_seed(random.randrange(2**31))
            model = shrunken.make(name)
            shrunken.run(model)
    except Exception as error:
        return row | {"verdict": "not made", "reason": _line(error)}
    kind = "encoder-decoder" if model.config.is_encoder_decoder else "causal"
    row["kind"] = kind
    plain = copy.deepcopy(model).double()
    try:
        with _limited(SECONDS):
            policy = load_policy(model, tokenizer(TASKS["slots"], kind))
            # What a generation config forbids or asks for is another promise's; the plain passes know nothing of it.
            policy.rules = GenerationRules(undrawn=policy.rules.undrawn)
            nats, allowed = difference(policy, plain, random)
    except UnsupportedModelError as error:
        return row | {"verdict": "refused", "reason": _line(error)}
    except Exception as error:
        return row | {"verdict": "disagrees", "reason": f"{type(error).__name__}: {_line(error)}"}
    row |= {"prompts": str(policy.sharing), "context": policy.context, "nats": float(f"{nats:.1e}")}
    if not nats <= allowed:
        return row | {"verdict": "disagrees", "reason": f"off by {nats:.1e} nats"}
    return row | {"verdict": "agrees"}


def difference(policy: Policy, plain: PreTrainedModel, random: Random) -> tuple[float, float]:
    """The largest difference of log-probabilities from the plain model's, and what is allowed."""
    prompts = [
        _prompt(policy, random, length, index) for index, length in enumerate(_lengths(policy, random))
    ]
    limit = WRITTEN if policy.response_limit is None else min(WRITTEN, policy.response_limit)
    rollout, seen = policy.sample_observed(
        prompts, Sampling(candidates=2, max_new_tokens=limit), random.randrange(99)
    )
    expected = _alone(plain, policy, rollout)
    observed = policy.observe(rollout)
    found = {
        "scored": policy.logprobs(rollout),
        "observed": observed.logprobs,
        "again": policy.logprobs(rollout),
        "while training": _trained(policy, rollout),
    }
    if seen is not None:
        found["sampled"] = seen.logprobs
        torch.testing.assert_close(seen.attention, observed.attention, rtol=0, atol=TOLERANCE)
    else:
        # transformers' own loop says nothing of what it draws from: of what it takes for likeliest.
        greedy = policy.sample(prompts, Sampling(candidates=1, max_new_tokens=limit, temperature=0.0))
        best = _alone(plain, policy, greedy, best=True)
        found["greedy"] = expected + (best - _alone(plain, policy, greedy)).max()
    worst = max((values.double() - expected).abs().max().item() for values in found.values())
    return worst, TOLERANCE * max(1.0, expected.abs().max().item())


def _lengths(policy: Policy, random: Random) -> list[int]:
    """Lengths of three prompts: one of them long, and one that fills a short context with its response."""
    lengths = [random.randint(2, 9), random.randint(12, LONGEST), random.randint(2, LONGEST)]
    if policy.context is None:
        return lengths
    full = policy.context - (WRITTEN if policy.readable.kind == "causal" else 0)
    return [min(length, full) for length in lengths[:2]] + ([full] if full <= 2 * LONGEST else lengths[2:])


def _prompt(policy: Policy, random: Random, length: int, index: int) -> Prompt:
    ids = tuple(random.randrange(3, len(policy.tokenizer)) for _ in range(length))
    return Prompt(text="", ids=ids, offsets=(), turns=(), index=index)


def _trained(policy: Policy, rollout: Rollout) -> Tensor:
    """[N T] of a pass with gradient checkpointing, as an update makes it."""
    with suppress(ValueError):  # a model that has none
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    policy.train()
    try:
        return policy(rollout).logprobs.detach()
    finally:
        policy.eval()


@torch.no_grad()
def _alone(plain: PreTrainedModel, policy: Policy, rollout: Rollout, best: bool = False) -> Tensor:
    """[N T] log-probabilities of each response in a row of its own, in float64; or of the likeliest token there."""
    plain.eval().set_attn_implementation("eager")
    if hasattr(plain, "set_experts_implementation"):
        plain.set_experts_implementation("eager")  # the grouped kernels know no float64
    found = torch.zeros(rollout.response_ids.shape, dtype=torch.float64)
    for row, mask in enumerate(rollout.response_mask):
        prompt = torch.tensor([rollout.prompts[row // rollout.group_size].ids])
        written = rollout.response_ids[row][mask]
        begun = policy.begun(1).get("decoder_input_ids")
        if begun is None:
            logits = plain(input_ids=torch.cat([prompt, written[None]], 1), use_cache=False).logits[0, :-1]
        else:
            shown = torch.cat([begun, written[None, :-1]], 1)
            logits = plain(input_ids=prompt, decoder_input_ids=shown, use_cache=False).logits[0]
        logprobs = logits[-len(written) :].log_softmax(-1)
        found[row, : len(written)] = (
            logprobs.max(-1).values if best else logprobs.gather(-1, written[:, None])[:, 0]
        )
    return found


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
