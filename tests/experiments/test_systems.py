"""What each system decides on a small bench: random weights, three samples a prompt, the task's checker."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from cagsr.config.schema import Term
from cagsr.data.preferences import Pair
from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.evaluation.evaluator import Answers
from cagsr.experiments.systems import SYSTEMS, find_systems
from cagsr.experiments.systems.bench import Bench
from cagsr.experiments.systems.recipe import (
    Choose,
    Imitate,
    NotForThisDataError,
    Prefer,
    Recipe,
    Reinforce,
    Unchanged,
)
from cagsr.rewards.reward import Reward
from cagsr.rewards.salience import Uniform
from cagsr.tasks import TASKS
from tiny import SHORT, policy, prompts

CHECKER = TASKS["slots"]
GOOD = "the show opens at four and feels calm ."


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    base = policy("t5")
    asked = [
        replace(prompt, row=row)
        for prompt, row in zip(prompts(base, (3, 7, 5)), CHECKER.rows("train", 3), strict=True)
    ]
    made = Bench(
        base=base,
        model="the-base",
        prompts=asked,
        prompts_per_step=2,
        sampling=SHORT,
        reward=Reward([Term("coverage"), Term("length", weight=0.1)]),
        conventional="reference_overlap",
        checker=CHECKER,
        salience=Uniform(),
        human=[Pair(asked[0], GOOD, "the show ."), Pair(asked[1], GOOD, ".")],
        simulated=False,
        synthetic=2,
        directory=tmp_path,
        world=World(Accelerator(cpu=True)),
        prompts_per_pass=2,
        seed=5,
    )
    made.trained = []  # type: ignore[attr-defined]

    def train(
        base: str, pairs: list[Pair], directory: Path, *, seed: int, steps: int, **settings: Any
    ) -> None:
        assert steps >= 40, "few pairs are seen as often as many"
        made.trained.append((base, pairs, directory.name, seed))  # type: ignore[attr-defined]

    monkeypatch.setattr("cagsr.experiments.systems.bench.train_reward_model", train)
    return made


def sampled(texts: list[list[str]], coverage: list[list[float]]) -> Answers:
    shape = (len(texts), len(texts[0]))
    signals = np.stack([np.array(coverage), np.zeros(shape)], -1)
    return Answers(texts, np.full(shape, 7), np.ones(shape, bool), np.zeros(shape), signals)


@pytest.fixture
def known(bench) -> Bench:
    """The bench with samples that are known: of the first prompt the second is best, of the last all are alike."""
    texts = [["a", "b", "c"], ["d", "e", "f"], ["g", "g", "g"]]
    bench._samples = sampled(texts, [[0.2, 0.5, 0.1], [0.3, 0.2, 0.7], [0.1, 0.1, 0.1]])
    return bench


def test_the_base_is_left_as_it_is(bench):
    assert SYSTEMS["no-rl"](bench) == Unchanged()


def test_continued_learning_sees_as_many_responses_as_reinforcement_samples(bench):
    recipe = SYSTEMS["continued-sft"](bench)
    assert isinstance(recipe, Imitate)
    assert recipe.responses == [prompt.row["reference"] for prompt in bench.prompts]
    assert recipe.batch_size == 2 * 3
    assert recipe.labels == 3


def test_cagsr_trains_on_the_attention_reward_with_either_algorithm(bench):
    for name, algorithm in (("cagsr-grpo", "grpo"), ("cagsr-ppo", "ppo")):
        assert SYSTEMS[name](bench) == Reinforce(bench.reward.terms, algorithm)


def test_policy_gradient_trains_on_a_conventional_reward_that_needs_references(bench):
    recipe = SYSTEMS["policy-gradient"](bench)
    assert recipe == Reinforce((Term("reference_overlap", standardise="batch"),), "policy-gradient", 3)


def test_best_worst_and_alike_samples_go_where_they_belong(known):
    assert SYSTEMS["sft-best"](known).responses == ["b", "f", "g"]
    pairs = SYSTEMS["dpo"](known).pairs
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("b", "c"), ("f", "e")]
    assert SYSTEMS["best-of-k"](known) == Choose()


def test_s3ft_takes_the_models_own_right_answer_and_else_the_reference(known, monkeypatch):
    monkeypatch.setattr(type(CHECKER), "quality", lambda self, row, text: float(text in "cg"))
    recipe = SYSTEMS["s3ft"](known)
    assert recipe.responses == ["c", known.references[1], "g"]


def test_rlhf_trains_on_a_reward_model_of_all_human_pairs(bench):
    recipe = SYSTEMS["rlhf"](bench)
    ((base, pairs, name, seed),) = bench.trained
    assert (base, len(pairs), seed) == ("the-base", 2, 5)
    assert recipe.terms == (Term("reward_model", options={"path": str(bench.directory / name)}),)
    assert recipe.labels == 2


def test_a_reward_model_that_is_there_is_taken_and_what_it_took_to_train_is_not_forgotten(bench):
    directory = bench.directory / "rlhf-seed-5"
    directory.mkdir()
    (directory / "training.json").write_text('{"seconds": 12.5}')
    SYSTEMS["rlhf"](bench)
    assert bench.trained == []
    assert bench.earlier_seconds == 12.5


def test_hybrid_adds_a_reward_model_of_so_many_pairs_to_the_attention_reward(bench):
    recipe = find_systems(["hybrid-1"], [1])["hybrid-1"](bench)
    assert recipe.terms[:-1] == bench.reward.terms
    assert recipe.terms[-1].signal == "reward_model"
    assert recipe.labels == 1
    assert len(bench.trained[0][1]) == 1


def test_synthetic_preference_asks_no_reward_and_no_label(known):
    texts = ["the show opens at four and feels calm .", "the show feels solemn and opens at two .", "it is ."]
    known._samples = sampled([[text, "x", "y"] for text in texts], [[0.0, 9.0, 1.0]] * 3)
    recipe = SYSTEMS["synthetic-preference"](known)
    pairs = known.trained[0][1]
    assert [pair.chosen for pair in pairs] == texts[:2]
    assert all(pair.rejected != pair.chosen for pair in pairs)
    assert recipe.labels == 0


def test_simulated_people_prefer_what_the_checker_prefers(bench):
    full = CHECKER.complete(bench.prompts[0].row, Random(0))
    assert CHECKER.check(bench.prompts[0].row, full).missing == 0
    bench = replace(bench, prompts=bench.prompts[:1], simulated=True)
    bench._samples = sampled([[".", full]], [[0.0, 0.0]])
    assert bench.people() == [Pair(bench.prompts[0], full, ".")]


UNSUITABLE: dict[str, dict[str, Any]] = {
    "rlhf": {"human": []},
    "hybrid-10": {},
    "oracle": {"checker": None},
    "s3ft": {"checker": None},
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_system_says_what_the_data_does_not_have(known, name):
    samples = known._samples
    changed = replace(known, **UNSUITABLE[name])
    changed._samples = samples
    with pytest.raises(NotForThisDataError, match=r"human pairs|no checker"):
        find_systems([name], [10])[name](changed)


@pytest.mark.parametrize("name", ["policy-gradient", "continued-sft", "s3ft"])
def test_systems_that_learn_from_references_say_when_there_are_none(known, name):
    samples = known._samples
    changed = replace(known, prompts=[replace(prompt, row={}) for prompt in known.prompts])
    changed._samples = samples
    with pytest.raises(NotForThisDataError, match="no references"):
        SYSTEMS[name](changed)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_says_in_one_line_what_it_is_and_gives_a_recipe_that_can_be_built(known, name):
    system: Callable[[Bench], Recipe] = SYSTEMS[name]
    assert (system.__doc__ or "").splitlines()[0].endswith(".")
    recipe = system(known)
    if isinstance(recipe, Reinforce):
        Reward(recipe.terms, {"oracle": lambda evidence: evidence.salience})
    assert isinstance(recipe, Recipe)


def test_the_copying_control_has_the_prices_of_the_reward_that_is_compared_and_not_its_eyes(bench):
    recipe = SYSTEMS["token-copy"](bench)
    assert recipe.terms == (Term("token_copy", weight=1.0), Term("length", weight=0.1))


def test_samples_that_are_all_alike_are_no_pairs(known):
    known._samples = sampled([["same"] * 3] * 3, [[0.0, 0.0, 0.0]] * 3)
    with pytest.raises(NotForThisDataError, match="that the reward tells apart"):
        SYSTEMS["dpo"](known)


def test_an_unknown_system_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'cagsr-grpo'"):
        find_systems(["cagsr-gpro"], [])


def test_real_samples_are_ranked_by_the_attention_reward_in_their_group(bench):
    assert np.abs(bench.rewards.mean(1)).max() < 1e-5
    best = [texts[k] for texts, k in zip(bench.samples.responses, bench.rewards.argmax(1), strict=True)]
    assert bench.best() == best
    assert isinstance(SYSTEMS["dpo"](bench), Prefer)
