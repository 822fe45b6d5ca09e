"""What leads past safetensors is refused with the file that it leads to."""

import json
from types import SimpleNamespace

import pytest

from cagsr.errors import InputError
from cagsr.io.safetensors_only import only_safetensors, reason


@pytest.mark.parametrize("file", ["shard.bin", "../model-1.safetensors", "/tmp/model-1.safetensors"])
def test_an_index_leads_to_safetensors_beside_it(tmp_path, file: str):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(InputError, match=rf"model\.safetensors\.index\.json leads to '{file}'"):
        only_safetensors(str(tmp_path), SimpleNamespace())


def test_a_sound_index_and_no_index_pass(tmp_path):
    only_safetensors(str(tmp_path), SimpleNamespace())
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    only_safetensors(str(tmp_path), SimpleNamespace(transformers_weights=None))
    only_safetensors(str(tmp_path), SimpleNamespace(transformers_weights="other.safetensors"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": [1]}'])
def test_what_is_no_index_is_said(tmp_path, content: str):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match="is no index of weights; download the model again"):
        only_safetensors(str(tmp_path), SimpleNamespace())


def test_a_config_cannot_name_a_pickle_as_its_weights(tmp_path):
    with pytest.raises(InputError, match=r"config\.json names 'adapter_model\.bin' as its weights"):
        only_safetensors(str(tmp_path), SimpleNamespace(transformers_weights="adapter_model.bin"))


def test_a_reason_is_one_line_and_names_the_error_where_words_do_not():
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(KeyError("added_tokens")) == "KeyError: 'added_tokens'"
    assert reason(OSError()) == "OSError"
