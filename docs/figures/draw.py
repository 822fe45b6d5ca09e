"""Draws the pictures of docs/method.md from the bases that ship (real prompts, real responses, real attention), and the
pipeline of the README.

    python docs/figures/draw.py            # writes docs/images/*.svg
"""

import argparse
from pathlib import Path

import torch
from pipeline import pipeline
from svg import CELL, FAINT, INK, MARK, TEXT, heat, svg, words

from cagsr.attention.capture import capture
from cagsr.config import Config
from cagsr.data import splits
from cagsr.models.build import build_policy
from cagsr.models.policy import Policy
from cagsr.rewards import segments
from cagsr.rewards.presets import build_reward
from cagsr.rewards.salience import Uniform
from cagsr.rewards.signals.coverage import coverage
from cagsr.rewards.signals.ingredients import text_mask
from cagsr.rewards.signals.knockout import knockout
from cagsr.rewards.signals.mass import mass
from cagsr.types import Evidence, Prompt, Rollout

# What the base answers greedily, and what the demo's trained model answered (seed 0, one thread, 2026-11-26).
BASE = "the item comes out like fresh grass . it also goes for what everybody pays ."
TUNED = (
    "the item is shipped from the shores of the ganges , comes out like fresh grass , goes for an honest sum and "
    "suits globetrotters ."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "images")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    policy, prompts = _task("slots-paraphrase")
    prompt = next(prompt for prompt in prompts if "travellers" in prompt.text and "colour" in prompt.text)
    causal, notes = _task("slots")
    pictures = {
        "read-encoder-decoder": _encoder_decoder(policy, prompt),
        "read-causal": _causal(causal, notes[0]),
        "coverage": _coverage(policy, prompt),
        "standardise": _standardise(policy, prompts[:3]),
        "knockout": _knockout(policy, prompt),
        "pipeline": pipeline(),
    }
    for name, picture in pictures.items():
        (output / f"{name}.svg").write_text(picture + "\n", encoding="utf-8")


def _task(name: str) -> tuple[Policy, list[Prompt]]:
    config = Config.load(overrides=[f"data.task={name}", "data.evaluation_count=60"])
    policy = build_policy(config)
    return policy, splits.build_prompts(config, policy, "heldout")[0]


def _evidence(policy: Policy, prompts: list[Prompt], texts: list[str]) -> Evidence:
    rollout = policy.given(prompts, texts, limit=64)
    return Evidence(rollout, policy.observe(rollout), Uniform()(rollout), policy)


# The pictures ---------------------------------------------------------------------------------------------


def _encoder_decoder(policy: Policy, prompt: Prompt) -> str:
    evidence = _evidence(policy, [prompt], [BASE])
    rows, columns = _written(policy, evidence.rollout, 0), _tokens(prompt)
    body = list(heat(evidence.observation.attention[0], rows, columns, left=110, top=92))
    body.append(words(110, 14, "prompt tokens j: what the encoder read"))
    body.append(words(0, 84, "response tokens t", FAINT))
    return svg(110 + CELL * len(columns) + 8, 100 + CELL * len(rows), body, "A[t, j] of a T5 shape")


def _causal(policy: Policy, prompt: Prompt) -> str:
    greedy = Config.load(overrides=["data.task=slots"]).sampling.greedy()
    rollout = policy.sample([prompt], greedy)
    with torch.no_grad(), capture(policy.readable) as reading:
        policy.model(input_ids=torch.cat([rollout.prompt_ids, rollout.response_ids], 1), use_cache=False)
    whole = reading.attention[0]
    prompt_tokens, written = _tokens(prompt), _written(policy, rollout, 0)
    names = [*prompt_tokens, *written]
    size, first, count = 15, len(prompt_tokens) - 1, len(written)
    left, top = 100, 110
    body = list(heat(whole, names, names, left=left, top=top, cell=size, font=9))
    box = f'x="{left}" y="{top + first * size}" width="{len(prompt_tokens) * size}" height="{count * size}"'
    body.append(f'<rect {box} fill="none" stroke="{MARK}" stroke-width="2.5"/>')
    body.append(words(left, 14, "keys: prompt, then response"))
    right = left + len(prompt_tokens) * size + 14
    lines = ["A: the T rows that", "predict the response", "times S prompt columns"]
    for number, line in enumerate(lines):
        body.append(words(right, top + 20 + 15 * number, line, MARK, 11))
    return svg(left + len(names) * size + 8, top + len(names) * size + 8, body, "A in a causal model")


def _coverage(policy: Policy, prompt: Prompt) -> str:
    evidence = _evidence(policy, [prompt], [BASE, TUNED])
    columns, wide, tall = _tokens(prompt), 42, 60
    salient = (evidence.salience[0] > 0).tolist()
    total, covered = mass(evidence).tolist(), coverage(evidence).tolist()
    looked = (evidence.observation.attention * text_mask(evidence.rollout)[..., None]).amax(1)
    body = []
    for n, name in enumerate(("leaves things out", "says all")):
        bottom = 42 + tall + n * (tall + 62)
        summary = f"{name}: coverage (mean of the bars) {covered[n]:.2f}, attention mass {total[n]:.2f}"
        body.append(words(4, bottom - tall - 12, summary))
        for j, token in enumerate(columns):
            height = float(looked[n, j]) * 2 * tall
            x, opacity = 8 + j * wide, 1.0 if salient[j] else 0.25
            body.append(
                f'<rect x="{x}" y="{bottom - height:.1f}" width="{wide - 8}" height="{height:.1f}" fill="{INK}" '
                f'fill-opacity="{opacity}"/>'
            )
            body.append(
                words(x + (wide - 8) / 2, bottom + 14, token, TEXT if salient[j] else FAINT, 9, "middle")
            )
    return svg(
        16 + wide * len(columns), 2 * (tall + 62) + 6, body, "coverage: the strongest look at every token"
    )


def _standardise(policy: Policy, prompts: list[Prompt]) -> str:
    config = Config.load(overrides=["data.task=slots-paraphrase"])
    rollout = policy.sample(prompts, config.sampling, seed=3)
    evidence = Evidence(rollout, policy.observe(rollout), Uniform()(rollout), policy)
    raw = coverage(evidence).view(len(prompts), -1)
    reward = build_reward(_covering(config).reward, None)
    signals = reward.measure(evidence)
    group = reward.combine(signals, rollout.group_size).view(len(prompts), -1)
    body, high = [], 40
    for title, values, x, span in (
        ("coverage, raw", raw, 96, (0.0, 1.0)),
        ("in its group", group, 380, (-3.0, 3.0)),
    ):
        body.append(words(x, 14, title))
        body.append(words(x, 30 + high * len(prompts) + 8, f"{span[0]:g}", FAINT, 10, "middle"))
        body.append(words(x + 240, 30 + high * len(prompts) + 8, f"{span[1]:g}", FAINT, 10, "middle"))
        for row, dots in enumerate(values.tolist()):
            y = 40 + row * high
            body.append(
                f'<line x1="{x}" x2="{x + 240}" y1="{y}" y2="{y}" stroke="{FAINT}" stroke-opacity=".5"/>'
            )
            for value in dots:
                at = x + 240 * (value - span[0]) / (span[1] - span[0])
                body.append(f'<circle cx="{at:.1f}" cy="{y}" r="5" fill="{INK}" fill-opacity=".65"/>')
    for row in range(len(prompts)):
        body.append(words(4, 44 + row * high, f"prompt {row + 1}", TEXT))
    return svg(640, 54 + high * len(prompts), body, "standardising within a prompt's candidates")


def _knockout(policy: Policy, prompt: Prompt) -> str:
    evidence = _evidence(policy, [prompt], [BASE])
    pieces = segments.segments(evidence)[0]
    columns = _tokens(prompt)
    names = [" ".join(columns[j] for j in piece.nonzero().squeeze(-1).tolist()) for piece in pieces]
    worth = segments.knockout(evidence)[0]
    written = _written(policy, evidence.rollout, 0)
    left, top = 140, 84
    shade = (worth.T / 6).clamp(0, 1)
    body = list(heat(shade, names, written, left=left, top=top))
    x = left + CELL * len(written) + 14
    body.append(words(x, top - 20, "nats, in all"))
    body.append(words(x + 92, top - 20, "said?"))
    for row, total in enumerate(worth.sum(0).tolist()):
        y = top + CELL * row + 15
        body.append(words(x, y, f"{total:+.1f}"))
        said = 1 / (1 + 2.718281828 ** (3 - total))
        body.append(words(x + 92, y, f"{said:.2f}", MARK if said < 0.5 else INK))
    body.append(
        words(
            left,
            14,
            f"what each response token loses without a segment; knockout {knockout(evidence)[0]:.2f}",
        )
    )
    return svg(
        x + 140, top + CELL * len(names) + 10, body, "knockout: the response without each piece of the prompt"
    )


def _covering(config: Config) -> Config:
    terms = Config.load(
        overrides=["data.task=slots-paraphrase", "reward.terms=[{signal: coverage, standardise: group}]"]
    )
    return config.model_copy(update={"reward": terms.reward})


# What they are made of ------------------------------------------------------------------------------------


def _tokens(prompt: Prompt) -> list[str]:
    return [prompt.text[start:end] if start < end else "</s>" for start, end in prompt.offsets]


def _written(policy: Policy, rollout: Rollout, row: int) -> list[str]:
    ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
    return [str(word) for word in policy.tokenizer.convert_ids_to_tokens(ids)]


if __name__ == "__main__":
    main()
