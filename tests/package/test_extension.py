"""A loss, an estimator, a signal, a task, a metric and a system are each one file and one line of a dictionary.

The package is copied, each is added to the copy, and a comparison that uses all of them is run with it. What it
writes could come from none of those that the package has.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import cagsr
import forked
import tiny

FILES = {
    "training/policy_losses/plain.py": """
        from cagsr.types import PolicyLoss

        def plain(logprobs, old_logprobs, advantages, mask, *, scale: float = 1.0):
            ratio = (logprobs - old_logprobs).exp()
            return PolicyLoss(-scale * ratio * advantages, ratio.isnan())
        """,
    "training/estimators/above_median.py": """
        import torch

        def above_median(reward_N, group_size):
            groups = reward_N.view(-1, group_size)
            return (groups > groups.median(1, keepdim=True).values).float().view(-1) - 0.5
        """,
    "rewards/signals/vowels.py": """
        def vowels(evidence, *, letters: str = "aeiou"):
            counted = [sum(letter in letters for letter in text) for text in evidence.rollout.responses]
            return evidence.salience.new_tensor(counted).float()
        """,
    "tasks/towns.py": """
        from cagsr.tasks.slots import FIELDS
        from cagsr.tasks.description import Description

        TOWNS = Description("towns", {name: FIELDS[name] for name in list(FIELDS)[:6]},
                            ("this concert",), ("it",), (0.5, 0.85, 0.1))
        """,
    "metrics/capitals.py": """
        def capitals(row, response):
            return float(sum(letter.isupper() for letter in response))
        """,
    "experiments/systems/vowel_lover.py": """
        from cagsr.config.schema import Term
        from cagsr.experiments.systems.recipe import Reinforce

        def vowel_lover(bench):
            \"\"\"Responses with many vowels.\"\"\"
            return Reinforce((Term("vowels", options={"letters": "ao"}),), algorithm="above-median")
        """,
}
# file -> (the line that it stands after, the line)
LINES = {
    "config/registry.py": [
        ("POLICY_LOSSES = {", '"plain": "cagsr.training.policy_losses.plain.plain",'),
        ("ESTIMATORS = {", '"above-median": "cagsr.training.estimators.above_median.above_median",'),
        ("    for name in (", '"vowels",'),
        ("TASKS = {", '"towns": "cagsr.tasks.towns.TOWNS",'),
    ],
    "metrics/__init__.py": [
        ("RESPONSE_METRICS: dict[str, ResponseMetric] = {", '"capitals": ResponseMetric(capitals, True),'),
        ("from cagsr.metrics.bootstrap import", "from cagsr.metrics.capitals import capitals"),
    ],
    "experiments/systems/__init__.py": [
        ("SYSTEMS: dict[str, System] = {", '"vowel-lover": vowel_lover,'),
        (
            "from cagsr.experiments.systems.bench import",
            "from cagsr.experiments.systems.vowel_lover import vowel_lover",
        ),
    ],
}  # fmt: skip


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    """A copy of the package with one more of each, beside tiny models."""
    copy = shutil.copytree(Path(cagsr.__file__).parent, tmp_path / "cagsr")
    for name, text in FILES.items():
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        (copy / name).write_text("\n".join(line[indent:] for line in lines) + "\n")
    for name, added in LINES.items():
        content = (copy / name).read_text().splitlines()
        for after, line in added:
            place = next(number for number, old in enumerate(content) if old.startswith(after))
            content.insert(place + 1, line)
        (copy / name).write_text("\n".join(content) + "\n")
    tiny.save_models(tmp_path)
    return tmp_path


def test_one_of_each_is_one_file_and_one_line(extended):
    settings = [
        "data.task=towns",
        "data.count=11",
        "data.evaluation_count=3",
        "model.name=t5",
        "train.steps=2",
        "train.prompts_per_step=2",
        "train.micro_batch=6",
        "sampling.candidates=3",
        "sampling.max_new_tokens=7",
        "algorithm.loss={name: plain, options: {scale: 0.5}}",
        "compare.systems=[no-rl, vowel-lover]",
        "compare.seeds=[0]",
        "compare.control=no-rl",
    ]
    # What is imported of the package is forgotten, and what is imported anew is the copy.
    copied = "import forked, sys; forked.forget('cagsr'); sys.path.insert(0, place); forked.cagsr(arguments)"
    given = {"place": str(extended), "arguments": ["compare", *settings]}
    done = forked.start(partial(exec, copied, given), extended)
    assert done.wait() == 0, done.err
    summary = json.loads((extended / "runs/compare/summary.json").read_text())
    assert list(summary["systems"]) == ["no-rl", "vowel-lover"]
    assert summary["task"] == "towns"
    assert "capitals" in summary["systems"]["vowel-lover"]
    run = extended / "runs/compare/vowel-lover/seed-0"
    steps, candidates = rows(run / "metrics.jsonl"), rows(run / "candidates.jsonl")
    assert len(steps) == 2
    for step in steps:
        # The estimator: one half either way, where the package's own give two groups of three any other number.
        advantages = [row["advantage"] for row in candidates if row["step"] == step["step"]]
        assert len(advantages) == 6
        assert set(advantages) == {0.5, -0.5}
        # The loss: on policy the ratio is 1, and all responses are of one length, so it is the mean of -scale A. At
        # most one of three is above their median, so the mean is not 0, and another scale gives another number.
        assert (step["length"], step["clipped"]) == (7, 0)
        assert step["policy_loss"] == pytest.approx(-0.5 * sum(advantages) / 6, abs=1e-6)
    # The signal, with the options of the system.
    for row in candidates:
        assert row["signals"] == {"vowels": sum(letter in "ao" for letter in row["response"])}
    assert (run / "config.yaml").read_text().count("above-median") == 1


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
