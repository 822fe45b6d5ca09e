"""What holds for each built-in signal, whatever it measures."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cagsr.rewards.signals
import reward_models
from cagsr.attention.naive import naive_looks, piece_weights
from cagsr.config.schema import Term
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Uniform
from cagsr.rewards.segments import segments
from cagsr.rewards.signals import SIGNALS
from evidence import make_evidence, make_prompt, padded, random_evidence

# What a signal needs beyond the evidence.
NEEDS = {"reward_model": {"path": reward_models.saved("t5")}}
# Its value for an empty response is nothing that could be known beforehand.
UNFORESEEN = ("random_reward", "reward_model")
KNOWN = [name for name in SIGNALS if name not in UNFORESEEN]
ASKED = [make_prompt("prompt 0", row={"reference": "a b"})]

RANGES = {
    "agreement": (0, 1),
    "attended": (math.log(1e-5), 0),
    "certainty": (0, math.inf),
    "contradiction": (-math.inf, 0),
    "coverage": (0, 1),
    "focus": (-1, 0),
    "grounding": (0, 1),
    "knockout": (0, 1),
    "length": (0, 7),
    "lexical_overlap": (0, 1),
    "lookback": (0, 1),
    "mass": (0, 1),
    "precision": (-math.inf, 0),
    "random_reward": (0, 1),
    "reconstruction": (-math.inf, 0),
    "reference_logprob": (-math.inf, 0),
    "reference_overlap": (0, 1),
    "repeated_words": (-1, 0),
    "repetition": (-1, 0),
    "retold": (-math.inf, 0),
    "reward_model": (-math.inf, math.inf),
    "shift": (0, 1),
    "surprise": (-math.inf, 0),
    "swapped": (-8, 8),
    "token_copy": (0, 1),
    "unexplained": (-math.inf, 0),
    "unfinished": (-1, 0),
}
VARIANTS = [
    *((name, NEEDS.get(name, {})) for name in SIGNALS if name != "retold"),
    ("coverage", {"saturation": "noisy_or", "gate": True}),
    ("coverage", {"saturation": "capped_sum", "cap": 0.5}),
    ("focus", {"direction": "high_entropy", "clamp": [0.2, 0.9]}),
    ("grounding", {"weighted": "probability", "saturation": "noisy_or"}),
    ("knockout", {"threshold": 1.0, "weights": "salience"}),
    # By default two mentions stand further apart than seven random tokens allow.
    ("retold", {"gap": 0, "explained": 0.0}),
    ("shift", {"direction": "still"}),
]
each_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("seed", range(5))
def test_values_are_float32_one_a_response_and_in_the_stated_range(name, seed):
    evidence = random_evidence(seed)
    values = SIGNALS[name](evidence, **NEEDS.get(name, {}))
    assert values.dtype == torch.float32
    assert values.shape == (15,)
    low, high = RANGES[name]
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6


@each_variant
def test_trap_10_padding_on_any_side_changes_nothing(name, options):
    evidence = random_evidence()
    expected = SIGNALS[name](evidence, **options)
    assert expected.unique().numel() > 1
    for padding in ({"left": 3}, {"right": 3}, {"response": 5}, {"left": 2, "right": 1, "response": 1}):
        found = SIGNALS[name](padded(evidence, **padding), **options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@each_variant
def test_a_signal_reads_nothing_of_the_prompt_that_its_reward_does_not_want(name, options):
    evidence = random_evidence()
    evidence = replace(evidence, pieces=segments(evidence))
    wanted = Reward([Term(name, options=options)]).wanted(Uniform())
    read = dict(evidence.observation.on_prompt)
    looks = naive_looks(read["attention"], piece_weights(evidence.per_row(evidence.pieces)))
    if not wanted.prompt_logprobs:
        del read["prompt_logprobs"]
    without = replace(evidence.observation, on_prompt=read | {"looks": looks})
    attention = without.on_prompt.pop("attention")
    if wanted.by_token:
        with pytest.raises(RuntimeError, match=r"observation\.attention was not read"):
            SIGNALS[name](replace(evidence, observation=without), **options)
        without.on_prompt["attention"] = attention
    found = SIGNALS[name](replace(evidence, observation=without), **options)
    torch.testing.assert_close(found, SIGNALS[name](evidence, **options), rtol=0, atol=0)


def everything_of(part):
    found = dict(vars(part))
    return found | found.pop("on_prompt", {})


@each_variant
def test_a_signal_does_not_change_its_evidence(name, options):
    evidence, untouched = random_evidence(), random_evidence()
    SIGNALS[name](evidence, **options)
    for part in ("observation", "rollout"):
        of, other = everything_of(getattr(evidence, part)), everything_of(getattr(untouched, part))
        for key, value in of.items():
            assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key
    assert torch.equal(evidence.salience, untouched.salience)


@each_variant
def test_responses_of_a_batch_do_not_see_each_other(name, options):
    evidence = random_evidence()
    together = SIGNALS[name](evidence, **options)
    rollout, observation = evidence.rollout.groups(1, 2), evidence.observation
    width, columns = rollout.response_ids.shape[1], evidence.rollout.prompt_mask[1]
    alone = type(evidence)(
        rollout,
        type(observation)(
            *(value[5:10, :width] for value in vars(observation).values() if torch.is_tensor(value)),
            {name: value[5:10, :width, columns] for name, value in observation.on_prompt.items()},
        ),
        evidence.salience[1:2, columns],
        evidence.observer,
        contrasts=evidence.contrasts,
    )
    torch.testing.assert_close(SIGNALS[name](alone, **options), together[5:10], rtol=1e-5, atol=1e-6)


# The prompt's words 100 and 101 after its end, 102, alone: -(402 % 13) / 3 and -(405 % 13) / 3 nats.
RETOLD = -(12 + 2) / 3 / 2
# The observer asked again without the prompt's one segment finds the token 500 likelier: -1 nat instead of -3.
EMPTY = {
    "attended": math.log(1e-5),
    "contradiction": -2.0,
    "knockout": 1 / (1 + math.exp(5)),
    "unexplained": -0.5,
    "focus": -1.0,
    "unfinished": 0.0,
    "length": 1.0,
    "certainty": 2.0,
    "precision": -3.0,
    "reference_logprob": -3.0,
    "surprise": -0.5,
    # And with another first token of the prompt -7/3 nats.
    "swapped": -2 / 3,
    "reconstruction": RETOLD,
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_response_of_nothing_but_its_end_has_a_defined_value(name):
    evidence = make_evidence(
        [[[0.3, 0.5, 0.1]] * 2] * 2,
        lengths=[1, 1],
        finished=[True, True],
        responses=["", ""],
        prompts=ASKED,
        response_ids=[[500, 501]] * 2,
        logprobs=[[-3.0, 0.0]] * 2,
        certainty=[[2.0, 0.0]] * 2,
    )
    assert SIGNALS[name](evidence).tolist() == pytest.approx([EMPTY.get(name, 0.0)] * 2)


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_a_response_without_any_token_has_a_defined_value(name, width):
    evidence = make_evidence(
        torch.full((2, width, 3), 0.3), lengths=[0, 0], responses=["", ""], prompts=ASKED
    )
    known = {"attended": math.log(1e-5), "focus": -1.0, "unfinished": -1.0, "knockout": 1 / (1 + math.exp(3))}
    known |= {"reconstruction": RETOLD}
    expected = known.get(name, 0.0)
    assert SIGNALS[name](evidence).tolist() == pytest.approx([expected] * 2)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_prompt_without_content_has_a_defined_value(name):
    evidence = make_evidence(
        torch.full((2, 3, 5), 0.1), salience=[[0.0] * 5], logprobs=[[-1.0] * 3] * 2, prompts=ASKED
    )
    assert SIGNALS[name](evidence, **NEEDS.get(name, {})).isfinite().all()


def test_there_is_one_file_a_signal_and_none_reads_another():
    folder = Path(cagsr.rewards.signals.__file__).parent
    files = {path.stem: path.read_text() for path in folder.glob("*.py")}
    assert set(files) - {"__init__", "ingredients"} == set(SIGNALS)
    for name in SIGNALS:
        others = [other for other in SIGNALS if other != name and f"signals.{other} import" in files[name]]
        assert others == []
        assert SIGNALS[name].__name__ == name


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_says_its_formula_range_and_direction(name):
    text = SIGNALS[name].__doc__ or ""
    assert text.startswith("[N] ")
    assert "higher is" in text
