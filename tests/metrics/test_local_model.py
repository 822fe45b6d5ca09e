"""A judge loaded here: greedy, and only from safetensors."""

import pytest
import torch

import tiny
from cagsr.errors import InputError
from cagsr.metrics.judge import Judge
from cagsr.metrics.local_model import LocalModel
from cagsr.models.load import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("judge")
    save_model(tiny.policy("llama"), directory)
    return directory


def test_it_writes_the_likeliest_tokens_after_the_messages(saved):
    policy = tiny.policy("llama")
    answer = LocalModel(str(saved))(
        [{"role": "user", "content": "city lyon"}, {"role": "user", "content": "day"}], 5
    )
    ids = policy.tokenizer("city lyon day")["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert policy.tokenizer.eos_token_id not in ids
    assert answer == policy.tokenizer.decode(ids[3:])


def test_what_does_not_fit_its_context_is_refused(saved):
    with pytest.raises(InputError, match=r"60 tokens to judge, and .* has a context of 64"):
        LocalModel(str(saved))([{"role": "user", "content": "city " * 60}], 5)


def test_a_model_that_babbles_is_counted_as_failing(saved):
    class Short(LocalModel):
        def __call__(self, messages, max_tokens):
            return super().__call__([{"role": "user", "content": "city"}], max_tokens)

    found = Judge(Short(str(saved))).rate(["p"], ["r"])
    assert found.failures == 1
    assert Judge(Short(str(saved))).describe()["sha256"]


def test_a_name_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.judge\.model: .* cannot be loaded"):
        LocalModel(str(tmp_path / "none"))
