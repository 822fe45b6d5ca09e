"""Learnt heads: found from a base's own responses, kept beside the run, read again, refused where they do not fit."""

import json
from pathlib import Path

import pytest
import torch

import tiny
from cagsr.config import Config
from cagsr.errors import InputError
from cagsr.evaluation.learnt_heads import choose_heads, find_heads, keep_heads, said_of
from cagsr.models.reference import Reference
from cagsr.rewards.heads import TOLD, agreement, follows, looks
from cagsr.rewards.salience import Uniform, evidence_of
from cagsr.rewards.segments import knockout


def config(heads: str, seed: int) -> Config:
    given = Config.load(None, ["data.task=slots", f"reward.heads={heads}", f"train.seed={seed}"])
    return given.model_copy(update={"sampling": SAMPLING})


SAMPLING = tiny.sampling(candidates=5, max_new_tokens=7, temperature=1.0)


def telling(name: str = "llama"):
    """A policy whose sharp logits make knockouts differ by more than noise."""
    policy = tiny.policy(name)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(8)
    return policy


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_heads_found_are_those_whose_looks_order_responses_as_knockouts_do(name: str):
    policy = telling(name)
    prompts = tiny.prompts(policy, (11, 7, 13))
    found = find_heads(policy, prompts, Uniform(), SAMPLING, seed=3)
    sums, counted, looked, lost = {}, 0, [], []
    for prompt in prompts:
        rollout = policy.sample([prompt], SAMPLING, seed=3)
        evidence = evidence_of(rollout, policy.observe(rollout), Uniform(), policy)
        of_prompt = looks(policy, evidence)
        chosen = [
            of_prompt[layer][head]
            for layer, row in found["weights"].items()
            for head, one in enumerate(row)
            if one
        ]
        looked.append(torch.stack(chosen).mean(0))
        lost.append(knockout(evidence).sum(1))
        for layer, look in of_prompt.items():
            total, pieces = agreement(look, evidence)
            sums[layer] = sums.get(layer, 0) + total
        counted += pieces
    assert found["pieces"] == counted > 0
    assert found["follows"] == pytest.approx(follows(looked, lost), abs=1e-5)
    for layer, total in sums.items():
        torch.testing.assert_close(torch.tensor(found["all"][layer]), total / counted)
        chosen = found["weights"].get(layer, [0.0] * len(total))
        assert chosen == [float(value > 0) for value in found["all"][layer]]  # fewer heads than are kept


def test_what_was_learnt_is_kept_and_read_again_and_the_reference_reads_it_too(tmp_path: Path):
    policy = telling()
    prompts, kept = tiny.prompts(policy, (11, 7, 13)), tmp_path / "heads.json"
    keep_heads(choose_heads(policy, config("learn", 3), prompts, Uniform(), kept), kept)
    found = json.loads(kept.read_text())
    heads = sum(sum(row) for row in found["weights"].values())
    assert str(policy.readable).startswith(
        f"{heads:.0f} heads of self-attention of {len(found['weights'])} of "
    )
    rollout = policy.sample(prompts, SAMPLING, seed=5)
    read = policy.observe(rollout).attention
    torch.testing.assert_close(Reference(policy).observe(rollout).attention, read)
    again = telling()
    before = again.observe(rollout).attention
    choose_heads(again, config(str(kept), 11), prompts, Uniform(), tmp_path / "other.json")
    assert torch.equal(again.observe(rollout).attention, read)
    assert not torch.allclose(before, read)
    assert not (tmp_path / "other.json").exists()


def test_all_heads_change_nothing(tmp_path: Path):
    policy = telling()
    before = policy.readable
    assert choose_heads(policy, config("all", 3), [], Uniform(), tmp_path / "heads.json") is None
    assert policy.readable is before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file of heads: .*No such file"),
        ("[1]", "is no file of heads: no object"),
        (
            '{"weights": {"97": [1.0]}, "agreement": 0.5, "pieces": 3}',
            "does not fit this model: weights of heads",
        ),
        ('{"agreement": 0.5}', "does not fit this model: 'weights'"),
    ],
)
def test_a_file_that_is_none_of_this_models_heads_is_refused(
    tmp_path: Path, content: str | None, message: str
):
    path = tmp_path / "heads.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        choose_heads(tiny.policy("llama"), config(str(path), 3), [], Uniform(), tmp_path / "kept.json")


def test_responses_that_never_differ_are_refused():
    policy = tiny.policy("llama")
    same = tiny.sampling(candidates=3, max_new_tokens=3, temperature=0.0)
    assert TOLD > 0
    with pytest.raises(InputError, match="never differ in what they take up"):
        find_heads(policy, tiny.prompts(policy), Uniform(), same, seed=3)


@pytest.mark.parametrize(
    ("follows", "said"),
    [
        (0.82, "which they follow by 0.82 (at most 1). Without labels that says: attention serves"),
        (0.31, "which they follow by 0.31 (at most 1). Without labels that says: ask for knockouts"),
    ],
)
def test_a_run_says_whether_its_heads_serve(follows: float, said: str):
    found = {"follows": follows, "agreement": 0.3, "pieces": 14, "weights": {0: [1.0, 0.0], 2: [1.0, 1.0]}}
    line = said_of(found | {"all": {0: [0.4, 0.1], 2: [0.2, 0.3]}})
    assert line.startswith("heads: 3 are read, found by knockouts of 14 pieces, ")
    assert said in line
