"""How long it takes to write responses: our decoding, transformers' own loop, and its continuous batching."""

from functools import partial
from typing import Any, cast

import torch
from transformers import GenerationConfig

from benchmarks.protocol import Taken, cpu, ratios, spread, take_turns
from benchmarks.record import Part, Plan, Table
from benchmarks.subjects import Shape, saved, step_of
from cagsr.attention.sharing import Sharing
from cagsr.config.schema import Sampling
from cagsr.models.policy import Policy
from cagsr.types import Prompt

SHAPE = Shape(prompts=2, prompt_tokens=256, response_tokens=64)
OURS, GENERATE, BATCHED = "cagsr", "generate", "continuous batching"
FEW = 3
ABOUT = f"""{SHAPE}, 2 ragged prompts of at most 256 tokens, K = 8 responses of at most 64.

- **{OURS}**: `Policy.sample`: each prompt computed once, its keys read once for its responses, ended rows leave.
- **{GENERATE}**: the same policy where it may not share: transformers' `generate`, the same uniform numbers.
- **{BATCHED}**: transformers' `generate_batch` on the same prompts, greedy, all responses of full length; {FEW} rounds,
  because it is long on a CPU.

Full length: no response ends early. Ending: one token in twenty ends a response, so that most are short and few take
all 64."""


def quick(shape: Shape) -> Shape:
    return Shape(shape.architecture, 2, 32, 4, 300, 2, 4, 32, 8)


def measure(plan: Plan) -> Part:
    shape = quick(SHAPE) if plan.quick else SHAPE
    with saved(shape) as directory:
        step, prompts = step_of(shape, directory)
        plain = step_of(shape, directory)[0].policy
    plain.sharing = Sharing("a benchmark compares")
    ours, sampling = step.policy, Sampling(candidates=shape.candidates, max_new_tokens=shape.response_tokens)
    ends, some = ours.eos_ids, list(range(0, shape.vocabulary, 20))
    rows: list[list[str]] = []
    turns: dict[str, list[Taken]] = {}

    def told(case: str, taken: dict[str, list[Taken]]) -> None:
        for way, each in taken.items():
            share = ratios(cpu(taken[OURS]), cpu(each))
            rows.append([case, way, spread(cpu(each)).text(3), share.text(3)])
            turns[f"{case}: {way}"] = each

    for case, eos_ids in (("full length", []), ("ending", some)):
        for policy in (ours, plain):
            policy.eos_ids = eos_ids or ends
        each = (
            sampling
            if eos_ids
            else Sampling(
                candidates=shape.candidates,
                min_new_tokens=shape.response_tokens,
                max_new_tokens=shape.response_tokens,
            )
        )
        ways = {OURS: partial(ours.sample, prompts, each), GENERATE: partial(plain.sample, prompts, each)}
        told(case, take_turns(ways, plan.rounds))
    ours.eos_ids, plain.eos_ids = ends, ends
    full = Sampling(
        candidates=shape.candidates,
        temperature=0.0,
        min_new_tokens=shape.response_tokens,
        max_new_tokens=shape.response_tokens,
    )
    ways = {OURS: partial(ours.sample, prompts, full), BATCHED: partial(batched, plain, prompts, full)}
    told("full length, greedy", take_turns(ways, min(plan.rounds, FEW)))
    columns = ["Case", "Way", "Seconds", "cagsr / this"]
    return Part("Writing responses", ABOUT, [Table("", columns, rows)], [], turns)


def batched(policy: Policy, prompts: list[Prompt], sampling: Sampling) -> None:
    model = cast(Any, policy.model)
    model.set_attn_implementation("sdpa")
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=policy.pad_id
    )
    ids = [list(prompt.ids) for prompt in prompts for _ in range(sampling.candidates)]
    with torch.no_grad():
        written = model.generate_batch(inputs=ids, generation_config=config, progress_bar=False)
    lengths = {len(each.generated_tokens) for each in written.values()}
    assert lengths == {sampling.max_new_tokens}, f"responses of {lengths} tokens are no comparison"
