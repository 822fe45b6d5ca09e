"""Learnt heads: found from a base's own responses, kept beside the run, read again, refused where they do not fit."""

import json
import pickle
from pathlib import Path

import pytest
import torch

import tiny
from cagsr.errors import InputError
from cagsr.evaluation.learnt_heads import NothingToldError, find_heads, keep_heads, read_file, read_heads
from cagsr.models.reference import Reference
from cagsr.rewards.heads import TOLD, agreement, follows, looks
from cagsr.rewards.salience import Uniform, evidence_of
from cagsr.rewards.segments import knockout

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


def test_a_policy_reads_the_heads_that_were_found_and_its_reference_does_too():
    policy = telling()
    prompts = tiny.prompts(policy, (11, 7, 13))
    found = find_heads(policy, prompts, Uniform(), SAMPLING, seed=3)
    rollout = policy.sample(prompts, SAMPLING, seed=5)
    before = policy.observe(rollout).attention
    read_heads(policy, found, "here")
    heads = sum(sum(row) for row in found["weights"].values())
    assert str(policy.readable).startswith(
        f"{heads:.0f} heads of self-attention of {len(found['weights'])} of "
    )
    read = policy.observe(rollout).attention
    assert not torch.allclose(before, read)
    torch.testing.assert_close(Reference(policy).observe(rollout).attention, read)
    again = telling()
    read_heads(again, json.loads(json.dumps(found)), "a file")
    assert torch.equal(again.observe(rollout).attention, read)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"weights": {"97": [1.0]}, "agreement": 0.5, "pieces": 3},
            "mine.json does not fit this model: weights",
        ),
        ({"preset": "knockout", "reason": "why"}, "mine.json names no heads to read"),
        ({"weights": [1.0]}, "mine.json does not fit this model"),
    ],
)
def test_heads_that_are_none_of_this_model_are_refused(found: dict, message: str):
    with pytest.raises(InputError, match=message):
        read_heads(tiny.policy("llama"), found, "mine.json")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), ("[1]", "no object"), ("{", "Expecting property name")]
)
def test_a_file_that_is_none_of_heads_is_refused(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "heads.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"{path} is no file of heads: .*{message}.* Mend it"):
        read_file(path, "Mend it.")


def test_what_was_found_is_kept_once(tmp_path: Path):
    kept = tmp_path / "heads.json"
    keep_heads(None, kept)
    assert not kept.exists()
    keep_heads({"weights": {2: [1.0]}}, kept)
    assert json.loads(kept.read_text()) == {"weights": {"2": [1.0]}}
    written = kept.stat().st_mtime_ns
    keep_heads({"weights": {"2": [1.0]}}, kept)
    assert kept.stat().st_mtime_ns == written
    keep_heads({"weights": {"3": [1.0]}}, kept)
    assert json.loads(kept.read_text()) == {"weights": {"3": [1.0]}}


def test_finding_heads_takes_no_number_of_the_training():
    policy = telling()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    begun: list[int] = []
    find_heads(policy, tiny.prompts(policy, (11, 7, 13)), Uniform(), SAMPLING, seed=3, begins=begun.append)
    assert torch.equal(torch.get_rng_state(), before)
    assert begun == [1, 2, 3]


def test_responses_that_never_differ_are_refused():
    policy = tiny.policy("llama")
    same = tiny.sampling(candidates=3, max_new_tokens=3, temperature=0.0)
    assert TOLD > 0
    with pytest.raises(NothingToldError, match="never differ in what they take up") as error:
        find_heads(policy, tiny.prompts(policy), Uniform(), same, seed=3)
    # As it goes from the main process to the others.
    handed = pickle.loads(pickle.dumps(error.value))
    assert str(handed) == str(error.value)
    assert str(handed).startswith(f"reward.heads: {handed.why}. Set reward.heads to all")
