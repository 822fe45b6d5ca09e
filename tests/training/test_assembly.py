"""How often a model runs in one step that `build_step` has put together from a config, as `cagsr train` does."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import tiny
from cagsr.config import Config
from cagsr.data.splits import build_prompts
from cagsr.models.build import build_policy
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward
from cagsr.rewards.salience import build_salience
from cagsr.training.assembly import build_step
from cagsr.training.step import Step
from cagsr.types import Prompt

PROMPTS, K, TOKENS = 3, 2, 5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    tiny.save_models(directory)
    return directory


def built(model: Path, groups_per_pass: int, *given: str) -> tuple[Step, list[Prompt]]:
    """A step over PROMPTS prompts and its prompts; every response takes all TOKENS tokens."""
    config = Config.load(
        None,
        [
            f"model.name={model}",
            "data.task=slots",
            f"data.count={PROMPTS}",
            "reward.terms=[{signal: coverage}, {signal: surprise}]",
            f"sampling.candidates={K}",
            f"sampling.max_new_tokens={TOKENS}",
            f"sampling.min_new_tokens={TOKENS}",
            f"train.prompts_per_step={PROMPTS}",
            f"train.micro_batch={groups_per_pass * K}",
            *given,
        ],
    )
    policy = build_policy(config)
    prompts, _ = build_prompts(config, policy, "train")
    assert len(prompts) == PROMPTS
    step = build_step(
        config,
        policy,
        build_reward(config.reward, None),
        build_salience(config, prompts),
        Accelerator(cpu=True),
    )
    assert step.groups_per_pass == groups_per_pass
    return step, prompts


def passes(policy: Policy, prompts: list[Prompt]) -> Counter[str]:
    """Counts from now on, by what goes through the model: prompts, whole responses, one token of each response."""
    found: Counter[str] = Counter()
    in_prompts = sum(len(prompt.ids) for prompt in prompts)
    assert in_prompts > PROMPTS * K, "a row of prompts must not look like a row of one token a response"

    def causal(_: nn.Module, __: tuple, given: dict) -> None:
        if hasattr(given["shared_prompt"], "predicting"):  # a row of prompts and their responses
            found.update(("prompts", "responses"))
        else:
            found["prompts" if given["input_ids"].shape[1] == in_prompts else "decoding"] += 1

    def decoder(_: nn.Module, __: tuple, given: dict) -> None:
        found["responses" if given.get("past_key_values") is None else "decoding"] += 1

    def encoder(*_: object) -> None:
        found["prompts"] += 1

    if policy.readable.kind == "causal":
        policy.model.register_forward_pre_hook(causal, with_kwargs=True)
    else:
        policy.model.register_forward_pre_hook(decoder, with_kwargs=True)
        policy.model.get_encoder().register_forward_pre_hook(encoder)
    return found


@pytest.mark.parametrize("groups_per_pass", [3, 1])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("observer", ["reference", "policy"])
@pytest.mark.parametrize("model", ["t5", "llama"])
def test_a_step_takes_no_pass_more_than_its_sampling_its_reference_and_its_update_need(
    models: Path, model: str, observer: str, algorithm: str, groups_per_pass: int
):
    given = [f"reward.observer={observer}", f"algorithm.name={algorithm}"]
    step, prompts = built(models / model, groups_per_pass, *given)
    by_policy, by_reference = passes(step.policy, prompts), passes(step.reference._policy, prompts)
    step.update(step.collect(prompts, seed=0).batches)
    # In each part of the rollout the reference reads responses once, and so does the policy's update. PPO reads them
    # once before, since the update does not tell what the critic said when they were written. An observer takes none:
    # the reference has read them anyway, and the policy while it wrote.
    parts = PROMPTS // groups_per_pass
    of_policy = 2 * parts if algorithm == "ppo" else parts
    # An encoder-decoder's first token is a step over its start token; a causal model predicts it from the prompt.
    steps = TOKENS if model == "t5" else TOKENS - 1
    assert by_reference == {"prompts": parts, "responses": parts}
    assert by_policy == {"prompts": 1 + of_policy, "responses": of_policy, "decoding": steps}


@pytest.mark.parametrize("model", ["t5", "llama"])
def test_an_observer_that_is_trained_sees_while_it_writes_what_a_pass_would_see(models: Path, model: str):
    step, prompts = built(models / model, 1, "reward.observer=policy")
    found = step.collect(prompts, seed=0)
    step.sampler = step.policy
    expected = step.collect(prompts, seed=0)
    assert found.rollout.responses == expected.rollout.responses
    torch.testing.assert_close(found.scores.signals, expected.scores.signals, rtol=1e-5, atol=1e-5)
    for here, there in zip(found.attended, expected.attended, strict=True):
        torch.testing.assert_close(here.attended, there.attended, rtol=1e-5, atol=1e-5)
