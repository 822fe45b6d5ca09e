"""A judge loaded here: greedy, and only from safetensors."""

import json
import shutil

import pytest
import torch

import tiny
from cagsr.errors import InputError
from cagsr.metrics.judge import Judge
from cagsr.metrics.local_model import LocalModel
from cagsr.models.load import save_model
from hub_cache import COMMITS, HubCache


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("judge")
    save_model(tiny.policy("llama"), directory)
    return directory


def likeliest(text, count):
    """The most probable tokens after a text, one after the other, as text."""
    policy = tiny.policy("llama")
    ids = policy.tokenizer(text)["input_ids"]
    length = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert policy.tokenizer.eos_token_id not in ids
    return policy.tokenizer.decode(ids[length:])


def test_it_writes_the_likeliest_tokens_after_the_messages(saved):
    messages = [{"role": "user", "content": "city lyon"}, {"role": "user", "content": "day"}]
    assert LocalModel(str(saved))(messages, 5) == likeliest("city lyon day", 5)


def test_its_own_settings_do_not_make_it_less_greedy(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "judge")
    own = {"do_sample": True, "temperature": 9.0, "num_beams": 3, "repetition_penalty": 7.0, "max_length": 4}
    (tmp_path / "judge" / "generation_config.json").write_text(json.dumps(own))
    message = {"role": "user", "content": "city lyon day"}
    assert LocalModel(str(tmp_path / "judge"))([message], 5) == likeliest("city lyon day", 5)


def test_messages_go_through_the_chat_template_it_has(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "judge")
    template = (
        "{% for m in messages %}city {{ m.content }}{% endfor %}{% if add_generation_prompt %} day{% endif %}"
    )
    (tmp_path / "judge" / "chat_template.jinja").write_text(template)
    message = {"role": "user", "content": "lyon"}
    assert LocalModel(str(tmp_path / "judge"))([message], 5) == likeliest("city lyon day", 5)


def test_a_chat_template_that_refuses_the_messages_is_said(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "judge")
    (tmp_path / "judge" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        InputError, match=r"template of .*judge refuses the conversation: .*roles must alternate"
    ):
        LocalModel(str(tmp_path / "judge"))([{"role": "user", "content": "lyon"}], 5)


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


def test_a_model_of_the_hub_is_named_by_the_commit_that_was_loaded(saved, tmp_path, monkeypatch):
    HubCache(tmp_path, monkeypatch).add("some/judge", saved)
    assert LocalModel("some/judge").describe() == {"name": "some/judge", "revision": COMMITS[0]}


def test_a_name_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.judge\.model: .* cannot be loaded"):
        LocalModel(str(tmp_path / "none"))
