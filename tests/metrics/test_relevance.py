"""Relevance: cosines by hand, pooling against a naive computation, and which models are read."""

import hashlib
import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import tiny
from cagsr.errors import InputError
from cagsr.metrics import relevance
from cagsr.metrics.relevance import Relevance, cosines, minilm_directory

TEXTS = ["city lyon day", "tea", "city lyon day monday tea lyon city"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny BERT of random weights, and its tokenizer."""
    directory = tmp_path_factory.mktemp("bert")
    words = PreTrainedTokenizerFast(
        tokenizer_object=tiny.policy("llama").tokenizer.backend_tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=11,
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 10, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 7}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=13, **shape))
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


@pytest.fixture
def with_modules(saved, tmp_path):
    """``with_modules(pooling, *kinds)``: the tiny BERT with the files of sentence-transformers."""

    def make(pooling, *kinds):
        for path in saved.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        modules = [{"path": "" if kind == "Transformer" else kind, "type": f"x.{kind}"} for kind in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "Pooling").mkdir()
        (tmp_path / "Pooling" / "config.json").write_text(json.dumps(pooling))
        return str(tmp_path)

    return make


def naive(directory, text, pool):
    """One text alone, no padding, float64."""
    words = PreTrainedTokenizerFast.from_pretrained(directory)
    ids = torch.tensor([words(text)["input_ids"]])
    model = BertModel.from_pretrained(directory).double().eval()
    with torch.no_grad():
        states = model(input_ids=ids).last_hidden_state[0]
    return pool(states).numpy()


def test_cosines_of_hand_made_embeddings():
    first = np.array([[1.0, 0, 0], [3, 4, 0], [1, 1, 0], [0, 0, 0], [2, 0, 0]])
    second = np.array([[0.0, 2, 0], [4, 3, 0], [-5, -5, 0], [1, 0, 0], [7, 0, 0]])
    assert cosines(first, second) == pytest.approx([0, 24 / 25, -1, 0, 1])


def test_the_mean_over_tokens_is_taken_where_the_model_does_not_say(saved):
    measure = Relevance(str(saved))
    expected = np.stack([naive(saved, text, lambda states: states.mean(0)) for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert measure.embed(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert measure(TEXTS[:2], TEXTS[1:]) == pytest.approx(
        [expected[0] @ expected[1], expected[1] @ expected[2]], abs=1e-6
    )


def test_the_first_token_is_taken_where_the_model_says_so(with_modules):
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    directory = with_modules(pooling, "Transformer", "Pooling", "Normalize")
    measure = Relevance(directory)
    expected = naive(directory, TEXTS[0], lambda states: states[0])
    assert measure.embed(TEXTS)[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert measure.describe()["pooling"] == "cls"
    newer = json.dumps({"pooling_mode": "cls"})
    with open(f"{directory}/Pooling/config.json", "w") as file:
        file.write(newer)
    assert Relevance(directory).describe()["pooling"] == "cls"


def test_a_text_is_cut_where_the_model_ends(saved):
    measure = Relevance(str(saved))
    assert measure.describe()["max_tokens"] == 11
    long = "city lyon day monday tea " * 5
    assert measure.embed([long]) == pytest.approx(measure.embed([" ".join(long.split()[:11])]), abs=1e-6)


def test_a_response_without_a_word_has_no_relevance(saved):
    assert Relevance(str(saved))(["city", "city"], ["", " \n"]).tolist() == [0, 0]


def test_what_was_loaded_is_named_by_its_weights(saved):
    weights = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    said = Relevance(str(saved)).describe()
    assert said == {"name": str(saved), "sha256": weights, "pooling": "mean", "max_tokens": 11}


def test_what_is_not_read_here_is_refused(with_modules, tmp_path):
    directory = with_modules({"pooling_mode": "max"}, "Transformer", "Pooling")
    with pytest.raises(InputError, match="pools by max"):
        Relevance(directory)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "2", "type": "models.Dense"}]))
    with pytest.raises(InputError, match="ends in Dense, which is not read here"):
        Relevance(directory)


def test_weights_in_a_pickle_are_not_read(saved, tmp_path):
    for path in saved.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(BertModel.from_pretrained(saved).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"metrics\.relevance_model: .* cannot be loaded"):
        Relevance(str(tmp_path))


def test_a_name_that_leads_nowhere_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.relevance_model: .*none' cannot be loaded"):
        Relevance(str(tmp_path / "none"))


def test_the_packaged_model_tells_a_response_from_another_one():
    """all-MiniLM-L6-v2: the hash is that of the weights on the hub."""
    measure = Relevance()
    assert measure.describe()["sha256"].startswith("53aa51172d142c89d9012cce15ae4d6cc0ca6895")
    near, far = measure(
        ["Describe the pub. name: The Vaults; area: riverside"] * 2,
        ["The Vaults is a riverside pub.", "Bananas are yellow."],
    )
    # the first by the package sentence-transformers 6.2.0: .91688
    assert near == pytest.approx(0.91688, abs=1e-4)
    assert far < 0.2


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(relevance, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'cagsr\[metrics\]', or name a directory"):
        minilm_directory()
