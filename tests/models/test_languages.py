"""Multilingual models: the target language begins every response, and one that is not chosen is named."""

from io import StringIO

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from cagsr.data.in_memory import encode_in_memory
from cagsr.errors import InputError
from cagsr.evaluation.score import score
from cagsr.models.build import check_sampling
from cagsr.models.from_scratch import new_tokenizer
from cagsr.models.load import save_model
from cagsr.models.load_policy import load_policy
from chat_models import TEXTS
from tiny import SHORT

CODES = {"m2m_100": ["__de__", "__fr__"], "mbart": ["de_DE", "fr_XX"]}
SHAPE = {
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 5,
    "decoder_attention_heads": 5,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 64,
    "forced_eos_token_id": None,
}


def tokenizer(codes: list[str]) -> PreTrainedTokenizerFast:
    words = new_tokenizer(TEXTS, "bart", 300)
    words.add_special_tokens({"additional_special_tokens": codes})
    return words


def model(kind: str, words: PreTrainedTokenizerFast, start: int = 1):
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 0, "decoder_start_token_id": start}
    made = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(kind, vocab_size=len(words), **ids, **SHAPE)
    )
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.mark.parametrize(
    ("kind", "code", "token"), [("m2m_100", "fr", "__fr__"), ("mbart", "fr_XX", "fr_XX")]
)
def test_a_target_language_begins_every_response_and_is_saved_with_the_model(kind, code, token, tmp_path):
    words = tokenizer(CODES[kind])
    language = words.convert_tokens_to_ids(token)
    policy = load_policy(model(kind, words), words, target_language=code)
    assert policy.prefixes(1).tolist() == [[1, language]]
    (prompt,) = encode_in_memory(["city lyon"], words)
    written = policy.sample([prompt], SHORT.greedy()).response_ids[0].tolist()
    plain = policy.model.generate(
        torch.tensor([prompt.ids]),
        forced_bos_token_id=language,
        do_sample=False,
        max_new_tokens=len(written) + 1,
    )
    assert plain[0].tolist() == [1, language, *written]
    save_model(policy, tmp_path / "model")
    assert load_policy(tmp_path / "model").prefixes(1).tolist() == [[1, language]]


def test_an_mbart_that_begins_with_a_language_begins_with_the_target():
    words = tokenizer(CODES["mbart"])
    german, french = words.convert_tokens_to_ids(CODES["mbart"])
    assert load_policy(model("mbart", words, german), words).prefixes(1).tolist() == [[german]]
    policy = load_policy(model("mbart", words, german), words, target_language="fr_XX")
    assert policy.prefixes(1).tolist() == [[french]]


@pytest.mark.parametrize("kind", CODES)
def test_a_model_of_many_languages_without_a_target_is_refused_with_its_codes(kind):
    words = tokenizer(CODES[kind])
    message = rf"{kind} writes many languages.*model\.target_language.*{CODES[kind][0]}, {CODES[kind][1]}"
    with pytest.raises(InputError, match=message):
        load_policy(model(kind, words), words)
    with pytest.raises(InputError, match=message):
        score(model(kind, words), words, ["city lyon"], ["tea"])


def test_a_model_that_was_tuned_to_write_without_a_language_goes_on_by_one_line():
    words = tokenizer(CODES["mbart"])
    plain = load_policy(model("mbart", words), words, ignore_generation_config=["forced_bos_token_id"])
    assert plain.prefixes(1).tolist() == [[1]]
    forced = model("mbart", words)
    forced.generation_config.forced_bos_token_id = 9
    assert load_policy(forced, words).prefixes(1).tolist() == [[1, 9]]
    left_out = load_policy(forced, words, ignore_generation_config=["forced_bos_token_id"])
    assert left_out.prefixes(1).tolist() == [[1]]


def test_a_target_language_that_nothing_would_force_is_refused_before_a_model_is_loaded():
    with pytest.raises(InputError, match=r"target_language: .* leaves out forced_bos_token_id; leave one"):
        load_policy("nowhere", target_language="fr_XX", ignore_generation_config=["forced_bos_token_id"])


def test_a_code_that_only_the_tokenizers_own_list_has_is_a_language():
    words = new_tokenizer(TEXTS, "bart", 300)
    words.add_special_tokens({"additional_special_tokens": ["<2fr>"]})
    french = words.convert_tokens_to_ids("<2fr>")
    words.lang_code_to_id = {"<2fr>": french}
    assert load_policy(model("mbart", words), words, target_language="<2fr>").prefixes(1).tolist() == [
        [1, french]
    ]


def test_without_any_known_code_it_is_said():
    words = new_tokenizer(TEXTS, "bart", 300)
    console = Console(file=StringIO(), width=300)
    check_sampling(load_policy(model("m2m_100", words), words), console)
    assert "m2m_100 writes many languages, and nothing says which" in console.file.getvalue()


def test_a_source_language_is_the_tokenizers():
    words = tokenizer(CODES["mbart"])
    words.src_lang = "de_DE"
    load_policy(model("mbart", words), words, target_language="fr_XX", source_language="fr_XX")
    assert words.src_lang == "fr_XX"


@pytest.mark.parametrize(
    ("kind", "codes", "settings", "message"),
    [
        (
            "mbart",
            CODES["mbart"],
            {"target_language": "fr_FR"},
            r"no language 'fr_FR'; choose from de_DE, fr_XX",
        ),
        ("m2m_100", CODES["m2m_100"], {"target_language": "a"}, r"no language 'a'; choose from __de__"),
        ("mbart", CODES["mbart"], {"target_language": "</s>"}, r"no language '</s>'; choose from de_DE"),
        ("mbart", CODES["mbart"], {"source_language": "a"}, r"no language 'a'; choose from de_DE"),
        ("bart", [], {"target_language": "fr_FR"}, r"has no languages, so not 'fr_FR' either"),
        (
            "bart",
            CODES["mbart"],
            {"source_language": "fr_XX"},
            r"marks no language; write it into the prompts",
        ),
    ],
)
def test_a_language_that_cannot_be_set_is_refused(kind, codes, settings, message):
    words = tokenizer(codes)
    with pytest.raises(InputError, match=message):
        load_policy(model(kind, words), words, **settings)
