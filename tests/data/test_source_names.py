"""Names that no file can have are refused like files that are missing."""

import pytest

from cagsr.data.readers import read
from cagsr.errors import InputError
from cagsr.metrics.ratings import read_ratings
from cagsr.models.load import load_model, load_tokenizer

NAMES = ["a\0b", "\udc80", "x" * 5000, "x/" * 3000]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reader", [read, read_ratings])
def test_a_file(reader, name: str):
    with pytest.raises(InputError):
        reader(f"{name}.jsonl")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loader", [load_model, load_tokenizer])
def test_a_model(loader, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^model\.name: "):
        loader(name)
