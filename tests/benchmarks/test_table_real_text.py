"""What a model forgot: nats a token of a text elsewhere, by hand and by a tiny model."""

import json

import numpy as np
import pytest
import torch

from benchmarks import table_real_text as text
from cagsr.config import Config
from cagsr.errors import InputError
from chat_models import chat_model, chat_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat")
    chat_model().save_pretrained(directory)
    chat_tokenizer().save_pretrained(directory)
    return str(directory)


def test_pieces_are_drawn_once_for_all(tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"piece {n % 70} of a book "}) for n in range(90)]
    rows.write_text("\n".join([*lines, '{"title": "no text"}', '{"text": "word"}']) + "\n")
    found = text.pieces_of(rows)
    assert len(found) == len(set(found)) == text.PIECES
    assert set(found) <= {f"piece {n} of a book" for n in range(70)}
    rows.write_text("\n".join(reversed(rows.read_text().splitlines())))
    assert text.pieces_of(rows) == found
    plain = tmp_path / "book.txt"
    plain.write_text("one paragraph\n\nanother\none\n\n\n\nword\n")
    assert sorted(text.pieces_of(plain)) == ["another\none", "one paragraph"]


def test_a_file_without_pieces_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"title": "a b"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl has 0 pieces"):
        text.pieces_of(tmp_path / "rows.jsonl")


def test_the_nats_of_a_piece_are_the_mean_over_its_tokens_but_the_first(tmp_path, model, monkeypatch):
    monkeypatch.setattr(text, "TOKENS", 9)
    pieces = ["hello world, tea and porto for the neighbours", "city lyon", "tea on monday"]
    config = Config.load(None, [f"model.name={model}", "data.task=restaurants", "sampling.temperature=0.5"])
    path = tmp_path / "made" / "elsewhere.json"
    assert text.kept_nats(path) is None
    found = text.nats(path, config, model, pieces)
    for piece, value in zip(pieces, found, strict=True):
        ids = torch.tensor(chat_tokenizer()(piece)["input_ids"][:9])
        logprobs = chat_model()(ids[None]).logits[0].log_softmax(-1)
        assert value == pytest.approx(-logprobs[:-1].gather(1, ids[1:, None]).mean().item(), abs=1e-4)
    kept = text.kept_nats(path)
    assert kept is not None
    assert kept.tolist() == found.tolist()
    monkeypatch.setattr(text, "build_policy", None)  # what is kept asks no model
    assert text.nats(path, config, model, pieces).tolist() == found.tolist()
    with pytest.raises(TypeError):
        text.nats(path, config, model, pieces[:2])


def test_two_texts_of_as_many_pieces_are_not_the_same(tmp_path):
    for name, pieces in (("a", "p"), ("b", "p"), ("c", "q")):
        (tmp_path / name).write_text(json.dumps({"pieces": pieces, "nats": [1.0, 2.0]}))
    assert text.same_pieces(tmp_path / "a", tmp_path / "b")
    assert not text.same_pieces(tmp_path / "a", tmp_path / "c")


def test_perplexity_changes_by_the_exponential_of_what_the_mean_moved():
    before = np.array([1.0, 2.0, 3.0])
    mean, low, high = text.change(before + np.log([1.1, 1.1, 1.1]), before)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
