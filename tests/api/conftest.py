"""Saved tiny models, and the same loaded by transformers as a user's program would load them."""

from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

import tiny

CHAT = (
    "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] }}"
    "{% if not (continue_final_message and loop.last) %}{{ ' <e>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> assistant ' }}{% if calm %}{{ 'calm ' }}{% endif %}{% endif %}"
)
"""Turns end with ``<e>``, which is not the tokenizer's end of sequence; ``calm`` is a variable of the template."""


@pytest.fixture(scope="session", autouse=True)
def quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A directory with ``t5``, ``llama`` and ``chat``: a llama whose template ends turns with a token of its own."""
    root = tmp_path_factory.mktemp("models")
    tiny.save_models(root)
    words = AutoTokenizer.from_pretrained(root / "llama")
    words.add_special_tokens({"additional_special_tokens": ["<s>", "<e>"]})
    words.chat_template = CHAT
    model = AutoModelForCausalLM.from_pretrained(root / "llama")
    model.resize_token_embeddings(len(words), mean_resizing=False)
    model.generation_config.eos_token_id = [words.eos_token_id, words.convert_tokens_to_ids("<e>")]
    model.save_pretrained(root / "chat")
    words.save_pretrained(root / "chat")
    return root


@pytest.fixture
def load(models):
    """``load("llama", attn_implementation="eager")``: a plain transformers model."""

    def loaded(name: str, **settings) -> PreTrainedModel:
        kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
        return kind.from_pretrained(models / name, **settings)

    return loaded


@pytest.fixture
def words(models):
    """``words("llama")``: the tokenizer of a model."""
    return lambda name: AutoTokenizer.from_pretrained(models / name)


@pytest.fixture(autouse=True)
def accelerate_begins_anew():
    """Accelerate keeps the precision of the first Accelerator of a process: TRL's would be that of all later tests."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
