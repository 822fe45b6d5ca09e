"""What the model has no positions for is refused before training, and references that are cut are counted."""

import json
import re

import pytest
import torch
from rich.console import Console

import tiny
from cagsr.config import Config
from cagsr.data import splits
from cagsr.errors import InputError
from cagsr.training.sft_run import run_sft


def config(*overrides):
    return Config.load(None, ["data.task=slots", "data.count=3", "data.evaluation_count=2", *overrides])


def references(policy, *overrides):
    return splits.build_prompts(config(*overrides), policy, "train", need_reference=True)


@pytest.mark.parametrize(("name", "most"), [("bart", 64), ("bart-forced", 63)])
def test_a_decoder_with_learned_positions_limits_the_response(name, most):
    policy = tiny.policy(name)
    longest = tiny.sampling(max_new_tokens=most, min_new_tokens=most)
    rollout = policy.sample(tiny.prompts(policy), longest)
    assert rollout.lengths.tolist() == [most] * 12
    assert policy(rollout).logprobs.isfinite().all()
    assert policy.observe(rollout).attention.shape[1] == most
    splits.build_prompts(config(f"sampling.max_new_tokens={most}"), policy, "train")
    message = f"sampling.max_new_tokens: {most + 1} tokens, and the model's decoder has positions for"
    with pytest.raises(InputError, match=message):
        splits.build_prompts(config(f"sampling.max_new_tokens={most + 1}"), policy, "train")
    words = " ".join(policy.tokenizer.convert_ids_to_tokens([7] * 70))
    assert policy.given(tiny.prompts(policy), [words] * 4, limit=most).lengths.tolist() == [most] * 4
    with pytest.raises(InputError, match=f"Set sampling.max_new_tokens to {most} or less"):
        policy.given(tiny.prompts(policy), [words] * 4, limit=most + 1)


def test_the_limit_of_references_is_that_of_supervised_training():
    bart, llama, t5 = (tiny.policy(name) for name in ("bart", "llama", "t5"))
    with pytest.raises(InputError, match=r"sft\.max_reference_tokens: 128 tokens, .* to 64 or less"):
        references(bart)
    references(bart, "sft.max_reference_tokens=64", "sampling.max_new_tokens=65")
    with pytest.raises(
        InputError, match=r"128 new tokens leave no room .* Lower sft\.max_reference_tokens\."
    ):
        references(llama)
    prompts, _ = references(llama, "sft.max_reference_tokens=20")
    longest = max(len(prompt.ids) for prompt in prompts)
    with pytest.raises(
        InputError, match=re.escape(f"{longest} prompt + {65 - longest} new tokens > 64 context")
    ):
        references(llama, f"sft.max_reference_tokens={65 - longest}")
    # Relative positions have no end.
    references(t5, "sft.max_reference_tokens=1000")


class Trained(Exception):
    pass


@pytest.fixture
def sft(tmp_path, monkeypatch):
    """Supervised training of a tiny BART that ends where the first step would begin; what it printed before."""

    def fine_tune(*given, **settings):
        raise Trained(settings)

    monkeypatch.setattr("cagsr.training.sft_run.fine_tune", fine_tune)
    monkeypatch.setattr("cagsr.runs.identity.base_name", lambda config: "tiny")
    monkeypatch.setattr("cagsr.training.sft_run.build_policy", lambda config: tiny.policy("bart"))

    def run(*overrides):
        console = Console(record=True, width=200)
        settings = config(f"sft.directory={tmp_path / 'base'}", *overrides)
        with pytest.raises((Trained, InputError)) as ended:
            run_sft(settings, console)
        return ended.value, console.export_text()

    return run


def test_held_out_prompts_are_looked_at_before_supervised_training(sft, tmp_path):
    error, _ = sft("sft.max_reference_tokens=30", "sampling.max_new_tokens=65")
    assert "sampling.max_new_tokens: 65 tokens" in str(error)
    assert not (tmp_path / "base").exists()


def test_a_reference_that_was_cut_off_before_is_trained_without_an_end(sft, tmp_path):
    rows = [{"prompt": "a", "reference": "city"}, {"prompt": "b", "reference": "tea", "finished": False}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ("data.task=null", f"data.source={tmp_path / 'd.jsonl'}", "sft.scratch={layers: 1, hidden: 16}")
    error, _ = sft("sft.max_reference_tokens=30", *own)
    assert error.args[0]["finished"] == [True, False]
    (tmp_path / "d.jsonl").write_text(json.dumps({**rows[0], "truncated": "perhaps"}))
    error, _ = sft("sft.max_reference_tokens=30", f"sft.directory={tmp_path / 'other'}", *own)
    assert "row 1: 'truncated' must be true or false, got 'perhaps'" in str(error)


def test_references_that_are_cut_are_counted(sft, tmp_path):
    policy = tiny.policy("bart")
    rows = splits.build_rows(config(), "train")
    lengths = sorted(len(policy.tokenizer(row.values["reference"])["input_ids"]) for row in rows)
    assert lengths[0] < lengths[2]
    error, text = sft(f"sft.max_reference_tokens={lengths[2] - 1}")
    assert isinstance(error, Trained)
    text = " ".join(text.split())
    cut = sum(length > lengths[2] - 1 for length in lengths)
    assert (
        f"warning: {cut} of 3 references are longer than sft.max_reference_tokens ({lengths[2] - 1})" in text
    )
    assert "not taught to end at the cut" in text
    _, text = sft(f"sft.max_reference_tokens={lengths[2]}", f"sft.directory={tmp_path / 'other'}")
    assert "references:" in text
    assert "warning" not in text


def test_a_cut_reference_is_not_trained_to_end():
    policy = tiny.policy("bart")
    words = " ".join(policy.tokenizer.convert_ids_to_tokens([5, 7, 11]))
    batch = policy.given(tiny.prompts(policy, (3,)), [words], limit=3)
    assert batch.response_ids.tolist() == [[5, 7, 11]]
    assert torch.equal(batch.finished, torch.tensor([False]))
