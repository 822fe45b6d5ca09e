"""Metrics of one step's experience: the row of metrics.jsonl and of the progress display."""

import math
import resource
from dataclasses import replace

import torch

from cagsr.distributed.process_group import World
from cagsr.errors import NumericsError
from cagsr.rewards.salience import evidence_of
from cagsr.rewards.signals.repetition import repeated_ngrams
from cagsr.training import kl
from cagsr.training.step import Collected, Step

__all__ = ["measure", "peak_memory", "shuffled_share"]

# Nats a token. Other kernels and bfloat16 leave two engines with the same weights far below it.
LARGEST_MISMATCH = 0.5


def measure(collected: Collected, world: World) -> dict[str, float]:
    """Metrics of a step: means over the responses (or tokens, where said) of all processes.

    reward            its mean; about 0 by construction when every term is standardised
    reward_spread     mean standard deviation of the reward within a group; 0: nothing to learn from
    signal/NAME       mean of the raw signal
    length            tokens a response;  finished: share that ended by themselves;  empty: share without a token
    repetition        share of repeated trigrams
    kl                nats a token, k3;  kl_response: nats a response, k1;  entropy: nats a token
    tokens            response tokens, a sum
    importance        where another engine sampled: the policy's probability of a token over the engine's, before
                      `training.importance` bounds it;  importance_max: the largest of all tokens
    mismatch          nats a token, KL of the engine's distribution to the policy's, k1: 0 if they have the same

    kl, kl_response, entropy, importance and mismatch are the update's to tell where `collect` left them to it (see
    `Algorithm.needs_old`). Raises NumericsError for an engine that cannot have the policy's weights.
    """
    rollout, scores = collected.rollout, collected.scores
    # Summed in float64 on the CPU: not every device has it, and these are a few numbers a response.
    tokens = rollout.lengths.cpu().double()
    groups = scores.reward.cpu().double().view(-1, rollout.group_size)
    words = tokens - rollout.finished.cpu().double()
    per_row = {
        "reward": scores.reward,
        "reward_spread": groups.std(1, unbiased=False).repeat_interleave(rollout.group_size),
        **{f"signal/{name}": scores.signals[:, c] for c, name in enumerate(scores.names)},
        "length": tokens,
        "finished": rollout.finished,
        "empty": words == 0,
        "repetition": repeated_ngrams(rollout),
    }
    rows = len(rollout.responses)
    sums = {name: value.cpu().double().sum() for name, value in per_row.items()}
    for batch in collected.batches:
        if batch.old_logprobs is not None and batch.entropy is not None:
            given = (each.cpu().double() for each in (batch.old_logprobs, batch.ref_logprobs, batch.entropy))
            for name, value in kl.sums(*given).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
    sums["tokens"] = tokens.sum()
    totals = world.total(torch.stack(list(sums.values()))).tolist()
    means = dict(zip(sums, totals, strict=True))
    for name in means.keys() & {*per_row, "kl_response"}:
        means[name] /= rows * world.size
    for name in means.keys() & {"kl", "entropy"}:
        means[name] /= max(means["tokens"], 1.0)
    if rollout.sampled_logprobs is not None and all(
        batch.old_logprobs is not None for batch in collected.batches
    ):
        means |= _against_the_engine(collected, means["tokens"], world)
    return means


def _against_the_engine(collected: Collected, tokens: float, world: World) -> dict[str, float]:
    """Comparison of the policy's own log-probabilities with those that another engine drew the responses by."""
    differences = []
    for batch in collected.batches:
        sampled, mask = batch.rollout.sampled_logprobs, batch.rollout.response_mask
        assert sampled is not None
        assert batch.old_logprobs is not None, "`Step.collect` sees to it"
        differences.append((batch.old_logprobs - sampled)[mask].cpu().double())
    difference = torch.cat(differences)
    ratio = difference.exp()
    importance, mismatch = (world.total(torch.stack([ratio.sum(), -difference.sum()])) / tokens).tolist()
    largest = float(world.gather(ratio.max().float().view(1).to(world.device)).max())
    if not (abs(mismatch) <= LARGEST_MISMATCH and math.isfinite(largest)):
        raise NumericsError(
            f"the engine that sampled and the policy are {mismatch:.3g} nats a token apart (at most "
            f"{LARGEST_MISMATCH:g}), the largest ratio of a token is {largest:.3g}: they do not have the same weights. "
            "Does another run send its weights to the same server, or did it quantise them? Far below 0, the server's "
            "log-probabilities are not of the distribution that it draws from (--logprobs-mode). With little of the "
            "probability left by sampling.top_p or top_k, raise these. Nothing was learnt from it."
        )
    return {"importance": importance, "importance_max": largest, "mismatch": mismatch}


def peak_memory(device: torch.device) -> float:
    """Gigabytes (10^9 bytes) that this process has held at most so far: of the GPU's memory, elsewhere of its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


@torch.no_grad()
def shuffled_share(step: Step, collected: Collected) -> float | None:
    """Share of responses that score at least as high under another prompt as under their own, in [0, 1].

    A reward that still reads the prompt keeps this low; 0.5 is chance. Every process hands each group the prompt
    of its neighbour; None where a process has a single group. The signals are compared after standardising each
    over true and shuffled responses together.
    """
    rollout = collected.rollout
    count = len(rollout.prompts)
    if count < 2:
        return None
    order = [*range(1, count), 0]
    shuffled = replace(
        rollout,
        prompts=[rollout.prompts[i] for i in order],
        prompt_ids=rollout.prompt_ids[order],
        prompt_mask=rollout.prompt_mask[order],
    )
    measured = []
    with step.accelerator.autocast():
        for part in shuffled.split(step.groups_per_pass):
            observation = step.observer.observe(part, step.reward.wanted(step.salience))
            evidence = evidence_of(part, observation, step.salience, step.observer)
            measured.append(step.reward.measure(evidence))
    pairs = step.world.gather(torch.stack([collected.scores.signals, torch.cat(measured)], 1)).cpu().double()
    spread = pairs.flatten(0, 1).std(0, unbiased=False).clamp(min=1e-12)
    values = step.reward.relative(pairs, torch.zeros_like(spread), spread)
    return float((values[:, 1] >= values[:, 0]).double().mean())
