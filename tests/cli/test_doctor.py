"""`cagsr doctor`: what is here, and what a model supports."""

import json

import torch
import transformers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
)


def test_versions_and_devices_without_a_model(cagsr):
    outcome = cagsr("doctor", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads(outcome.out)
    assert set(report) == {"versions", "devices"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["transformers"] == transformers.__version__
    assert report["versions"]["wandb"] == "not installed" or report["versions"]["wandb"]
    assert report["devices"][0].startswith("cpu, ")


def test_a_model_that_can_be_trained(cagsr, models):
    outcome = cagsr("doctor", models / "t5", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    model = json.loads(outcome.out)["model"]
    assert model["supported"] is True
    assert model["architecture"] == "encoder-decoder"
    assert model["attention"] == "cross-attention of 2 of 2 layers (0, 1)"
    assert model["prompts"] == "a prompt is computed once for all its responses"
    assert model["end_of_sequence_ids"] == [1]
    assert (model["chat_template"], model["fast_tokenizer"]) == (False, True)


def test_a_model_that_cannot_says_why_in_words(cagsr, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=31, **shape)).save_pretrained(tmp_path / "bert")
    outcome = cagsr("doctor", "bert", "--json")
    assert outcome.code == 2  # a pipeline stops here
    model = json.loads(outcome.out)["model"]
    assert model["supported"] is False
    assert "bert" in model["reason"]
    text = cagsr("doctor", "bert")
    assert "supported: no" in text.out
    assert (text.code, text.err) == (2, "")


def test_a_config_without_a_padding_token_at_all_is_examined(cagsr, models, tmp_path):
    shape = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    words = AutoTokenizer.from_pretrained(models / "llama")
    config = CodeGenConfig(vocab_size=len(words), bos_token_id=None, eos_token_id=1, **shape)
    assert not hasattr(config, "pad_token_id")
    CodeGenForCausalLM(config).save_pretrained(tmp_path / "codegen")
    words.save_pretrained(tmp_path / "codegen")
    outcome = cagsr("doctor", "codegen")
    assert outcome.err == ""
    assert "codegen has no attention that transformers' attention interface reaches" in " ".join(
        outcome.out.split()
    )


def test_a_model_whose_attention_cannot_be_read_says_why(cagsr, models, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape |= {"num_key_value_heads": 1, "head_dim": 8}
    words = AutoTokenizer.from_pretrained(models / "llama")
    Gemma2ForCausalLM(Gemma2Config(vocab_size=len(words), **shape)).save_pretrained(tmp_path / "capped")
    words.save_pretrained(tmp_path / "capped")
    model = json.loads(cagsr("doctor", "capped", "--json").out)["model"]
    assert model["supported"] is False
    assert "uses a softcap" in model["reason"]


def test_a_prompt_is_shown_as_the_model_reads_it_but_not_to_a_program(cagsr, models, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "city lyon ; day monday </s>"}\n')
    outcome = cagsr("doctor", models / "llama", "--data", tmp_path / "d.jsonl")
    assert outcome.code == 0, outcome.err
    lines = " ".join(outcome.out.split())
    assert "the prompt of row 1 as the model reads it: 'city lyon ; day monday </s>'" in lines
    assert "to be covered, 2 pieces: city lyon | day monday" in lines
    assert "warning: special tokens are spelt in 1 prompts" in lines
    assert "as the model reads it: 'Write a note about" in cagsr("doctor", models / "llama").out
    assert "as the model reads it" not in cagsr("doctor", models / "llama", "--json").out
    assert cagsr("doctor", models / "llama", "--data", tmp_path / "none.jsonl").code == 2
