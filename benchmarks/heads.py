"""Whether learnt heads see what a response says: AUC of pieces, beside knockout, all heads and the last layer.

``python -m benchmarks.heads MODEL PROMPTS.jsonl [--count 20] [--learn 4] [--seed 1]`` samples six responses to each
prompt, takes every piece away in turn, reads every head, and asks the E2E rules what each response says. The rows of
the file have ``prompt`` (text or messages) and ``slots``. Heads are learnt on the first ``--learn`` prompts, without
the rules, and everything is measured on the others. Half a minute a prompt on a core for 135 M parameters.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cagsr.config.schema import Sampling
from cagsr.data.in_memory import encode_in_memory
from cagsr.models.load_policy import load_policy
from cagsr.models.policy import Policy
from cagsr.rewards.heads import agreement, best_heads, looks
from cagsr.rewards.salience import Pieces, evidence_of
from cagsr.rewards.segments import knockout
from cagsr.tasks.e2e import E2E
from cagsr.types import Prompt

SAMPLING = Sampling(candidates=6, temperature=0.8, max_new_tokens=64)


@dataclass(frozen=True)
class Measured:
    """One prompt: looks of each head at each piece [L H N J], knockouts and truth (is it said?) [N J]."""

    looked: Tensor
    lost: Tensor
    said: Tensor
    agreed: Tensor
    counted: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--learn", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.prompts.read_text(encoding="utf-8").splitlines()]
    policy = load_policy(given.model)
    prompts = encode_in_memory([row["prompt"] for row in rows], policy.tokenizer)
    salience = Pieces(prompts)
    measured = [
        measure(policy, prompt, row, salience, given.seed)
        for prompt, row in zip(prompts[: given.count], rows, strict=False)
    ]
    for line in table(measured, given.learn):
        print(line)


def measure(policy: Policy, prompt: Prompt, row: dict[str, Any], salience: Pieces, seed: int) -> Measured:
    """Sample responses to a prompt, and find what each says, loses without a piece, and looks at with each head."""
    rollout = policy.sample([prompt], SAMPLING, seed=seed)
    evidence = evidence_of(rollout, policy.observe(rollout), salience, policy)
    looked = looks(policy, evidence)
    found = [agreement(of_layer, evidence) for of_layer in looked.values()]
    pieces = [
        prompt.text[prompt.offsets[piece[0]][0] : prompt.offsets[piece[-1]][1]]
        for piece in salience.divide(prompt)
    ]
    said = [[_says(row, piece, response) for piece in pieces] for response in rollout.responses]
    return Measured(
        torch.stack(list(looked.values())),
        knockout(evidence).sum(1),
        torch.tensor(said),
        torch.stack([sums for sums, _ in found]),
        found[0][1],
    )


def _says(row: dict[str, Any], piece: str, response: str) -> bool:
    slots = [slot for slot in row["slots"] if piece.strip().startswith(slot[0])]
    if not slots:
        raise ValueError(f"{piece!r} is none of the slots {row['slots']}")
    return E2E().check({"slots": slots}, response).missing == 0


def table(measured: list[Measured], learn: int) -> list[str]:
    """Lines of the table: AUC over all pieces, over one prompt's responses for the same piece, and of responses."""
    counted = sum(each.counted for each in measured[:learn])
    means = torch.stack([each.agreed for each in measured[:learn]]).sum(0) / counted
    weights = best_heads({layer: row.tolist() for layer, row in enumerate(means)})
    chosen = torch.zeros_like(means)
    for layer, row in weights.items():
        chosen[layer] = torch.tensor(row)
    rest = measured[learn:]
    scores = {
        "knockout": [each.lost for each in rest],
        "attention, all heads": [each.looked.mean((0, 1)) for each in rest],
        "attention, last layer": [each.looked[-1].mean(0) for each in rest],
        f"attention, {int(chosen.sum())} learnt heads": [
            torch.einsum("lhnj,lh->nj", each.looked, chosen) / chosen.sum() for each in rest
        ],
    }
    said = [each.said for each in rest]
    every = torch.cat([one.flatten() for one in said])
    lines = [
        f"{len(rest)} prompts, {len(every)} pieces, {every.float().mean():.2f} said; heads learnt on {learn} prompts, "
        f"{counted} pieces"
    ]
    for name, found in scores.items():
        pieces = auc(torch.cat([one.flatten() for one in found]), every)
        same = [
            auc(one[:, j], truth[:, j])
            for one, truth in zip(found, said, strict=True)
            for j in range(one.shape[1])
        ]
        known = [value for value in same if value is not None]
        lines.append(
            f"{name:30s} pieces {pieces:.3f}  same piece {sum(known) / len(known):.3f} ({len(known)} pieces)"
        )
    return lines


def auc(scores: Tensor, truth: Tensor) -> float | None:
    """Share of pairs of a true and a false one in which the true one scores higher; ties count half; None: no pair."""
    true, false = scores[truth][:, None], scores[~truth]
    if not len(true) or not len(false):
        return None
    return float(((true > false).float() + (true == false).float() / 2).mean())


if __name__ == "__main__":
    main()
