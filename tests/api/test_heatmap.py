"""The heatmap holds what eager attention says; every token has a label that can be read, whatever it is."""

import re
import sys
import warnings
from itertools import pairwise

import matplotlib.image
import pytest
import torch
from matplotlib.figure import Figure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cagsr.attention.naive import eager_weights, naive_attention
from cagsr.errors import InputError, StorageError
from cagsr.models.load_policy import load_policy
from cagsr.report.heatmap import Heatmap, heatmap
from cagsr.report.heatmap_figure import shown

PROMPT, RESPONSE = "city lyon ; drink tea", "comes to lyon"


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: characters beyond ASCII are several tokens, a space is part of the next word."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    made.train_from_iterator(["the cat sat", "the cat sat on the mat"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="module")
def model(words) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 20, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 5}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=0, pad_token_id=0, **shape))


@pytest.mark.parametrize(("layers", "read"), [("all", (0, 1)), ([1], (1,))])
def test_it_holds_the_attention_of_eager_transformers(load, layers, read):
    found = heatmap(load("llama"), None, PROMPT, RESPONSE, layers=layers)
    assert found.prompt_tokens == ("city", "lyon", ";", "drink", "tea")
    assert found.response_tokens == ("comes", "to", "lyon", "</s>")
    assert found.special == (frozenset(), frozenset({3}))
    assert found.layers == read
    eager, policy = load("llama", attn_implementation="eager"), load_policy(load("llama"))
    ids = [*policy.tokenizer(PROMPT)["input_ids"], *policy.encode([RESPONSE])[0]]
    weights = eager_weights(eager, input_ids=torch.tensor([ids]))
    expected = naive_attention([weights[layer] for layer in read], slice(4, 8), slice(0, 5))[0]
    assert torch.allclose(found.attention, expected, atol=1e-6)


def test_an_encoder_decoder_and_a_conversation_are_shown_too(models):
    found = heatmap(models / "t5", None, PROMPT, RESPONSE)
    assert found.prompt_tokens == ("city", "lyon", ";", "drink", "tea", "</s>")
    assert found.attention.sum(-1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    chat = heatmap(models / "chat", None, [{"role": "user", "content": "city lyon"}], "tea")
    assert chat.prompt_tokens == ("<s>", "<unk>", "city", "lyon", "<e>", "<s>", "<unk>")
    assert chat.response_tokens == ("tea", "<e>")
    assert {chat.prompt_tokens[column] for column in chat.special[0]} == {"<s>", "<e>", "<unk>"}


def test_pieces_of_bytes_are_shown_as_the_text_they_write(model, words):
    found = heatmap(model, words, "the cat 日é", "sat\n\tthe")
    assert "".join(found.prompt_tokens).replace("…", "") == "the cat 日é"
    at = found.prompt_tokens.index("日")
    assert found.prompt_tokens[at : at + 3] == ("日", "…", "…")
    assert found.response_tokens[-1] == "<eos>"
    assert "\n" in found.response_tokens


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" cat", "cat"),
        ("  ", "␣␣"),
        ("\n", r"\n"),
        ("a\u202eb\x1b", r"a\u202eb\x1b"),
        ("שלום", "שלום"),
        ("\U0001f388", r"\U0001f388"),
        ("$x_1$", "$x_1$"),
        ("x" * 30, "x" * 19 + "…"),
    ],
)
def test_a_label_shows_what_can_be_drawn_and_escapes_the_rest(token, label):
    assert shown(token) == label


def random_heatmap(rows: int, columns: int, **settings) -> Heatmap:
    values = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) / columns
    prompt, response = (tuple(f"word{n}" for n in range(count)) for count in (columns, rows))
    return Heatmap(values, prompt, response, (frozenset({0}), frozenset()), (0,), **settings)


@pytest.mark.parametrize(("columns", "panels"), [(5, 1), (48, 1), (49, 2), (200, 5)])
def test_every_label_of_any_prompt_is_drawn_and_none_over_another(columns, panels):
    figure = random_heatmap(7, columns).figure()
    axes = figure.axes[:-1]
    assert len(axes) == panels
    labels = [label.get_text() for panel in axes for label in panel.get_xticklabels()]
    assert labels == [f"word{n}" for n in range(columns)]
    figure.draw_without_rendering()
    page = figure.bbox
    for panel in axes:
        boxes = [label.get_window_extent() for label in panel.get_xticklabels()]
        assert all(one.x1 <= other.x0 + 1 for one, other in pairwise(boxes))
        rows = [label.get_window_extent() for label in panel.get_yticklabels()]
        assert all(one.y0 >= other.y1 - 1 for one, other in pairwise(rows))
        for box in [*boxes, *rows]:
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1
            assert page.y0 <= box.y0
            assert box.y1 <= page.y1
    tops = [panel.get_tightbbox().y1 for panel in axes]
    below = [panel.get_position().y0 * page.height for panel in axes]
    assert all(lower >= top for lower, top in zip(below, tops[1:], strict=False))
    assert {label.get_color() for label in axes[0].get_xticklabels()[:2]} == {"#a34700", "#222222"}


@pytest.mark.parametrize("name", ["map.svg", "map.png", "map.pdf"])
def test_a_file_is_what_its_name_ends_in(tmp_path, name):
    random_heatmap(3, 5).save(tmp_path / name)
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[name[-3:]]
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_of_very_many_rows_is_smaller_and_not_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Heatmap, "figure", lambda self: Figure(figsize=(0.5, 500)))  # as of 2500 rows
    random_heatmap(3, 5).save(tmp_path / "tall.png")
    assert matplotlib.image.imread(tmp_path / "tall.png").shape[:2] == (131 * 500, 65)


def test_a_notebook_shows_it_without_pyplot(model, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = heatmap(model, words, "the cat 日本 🎈 \u202e $a$ $b$", "sat")._repr_svg_()
    assert re.search(r"<svg [^>]*viewBox", written)


def test_other_names_and_places_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"heatmap: 'map.jpeg' must end in .svg, .png, .pdf"):
        random_heatmap(3, 5).save("map.jpeg")
    with pytest.raises(StorageError, match=r"heatmap: .*map.svg cannot be written: No such file"):
        random_heatmap(3, 5).save(tmp_path / "nowhere" / "map.svg")


def test_without_matplotlib_the_numbers_are_there_and_drawing_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "cagsr.report.heatmap_figure")
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    found = random_heatmap(3, 5)
    assert found.attention.shape == (3, 5)
    with pytest.raises(
        InputError, match=r"^heatmap: drawing needs matplotlib; install it: pip install matplotlib$"
    ):
        found.figure()
