"""A GGUF file by its name is the model that it was made of, or is refused by name."""

import hashlib
import json
import math
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    StableLmConfig,
    Starcoder2Config,
    T5Config,
)

import cagsr
import forked
from cagsr.errors import InputError, StorageError, UnsupportedModelError
from cagsr.io.adapters import identity_with_base
from cagsr.io.provenance import identity, settings_digest
from cagsr.models import gguf, gguf_conversion
from cagsr.models.load import load_model, load_tokenizer, save_model
from cagsr.models.load_policy import load_policy
from command_line import settle, typed
from gguf_files import TEMPLATE, original, write_as, write_gguf

IDS = torch.tensor([[0, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41]])
SENTENCE = "the price of 12345 is 678, don't"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return original(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The working directory, with the user's cache in it."""
    settle(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf._copy.cache_clear()
    return tmp_path


def logits(name, **how):
    model, _ = load_model(str(name), **how)
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


def copies(place: Path) -> list[Path]:
    return sorted(path for path in (place / "cache/cagsr/gguf").glob("*/*") if path.name[0] != ".")


def refused(name, error=UnsupportedModelError) -> str:
    with pytest.raises(error) as raised:
        load_policy(name)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"model.name: {str(name)!r}")
    return str(raised.value)


@pytest.mark.parametrize("tied", [False, True])
def test_float32_is_the_model_itself(place, capsys, tied):
    whole = original(place / "whole", tie_word_embeddings=tied)
    file = write_gguf(place / "tiny.gguf", whole)
    model, _ = load_model("tiny.gguf")
    assert torch.equal(logits("tiny.gguf"), logits(whole))
    config = model.config
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 50000.0)
    assert (config.tie_word_embeddings, config.name_or_path) == (tied, "tiny.gguf")
    assert not hasattr(config, "quantization_config")
    ours, theirs = load_tokenizer("tiny.gguf"), load_tokenizer(str(whole))
    assert ours(SENTENCE).input_ids == theirs(SENTENCE).input_ids
    assert (ours.chat_template, ours.bos_token_id, ours.eos_token_id) == (TEMPLATE, 0, 1)
    assert ours.pad_token is None
    policy = load_policy("tiny.gguf")
    assert (policy.pad_id, policy.eos_ids, policy.context) == (1, [1], 128)
    assert not list(copies(place)[0].glob("*.gguf"))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"{file}: F32 in a GGUF file; read as float32 from {copies(place)[0]}") == 1


def test_a_quantised_file_is_near_it_and_says_that_it_is_rounded(place, whole, capsys):
    file = write_gguf(place / "tiny.gguf", whole, "Q8_0")
    near, exact = logits(file), logits(whole)
    assert 0 < (near - exact).norm() < 0.05 * exact.norm()
    # Blocks of 32 numbers are whole multiples of a scale, which is a float16.
    weights = [load_model(str(name))[0].model.layers[1].mlp.up_proj.weight.data for name in (file, whole)]
    rounded, blocks = (weight.view(-1, 32) for weight in weights)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    assert torch.equal(rounded, (blocks / scales).round() * scales.half().float())
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Q8_0 in a GGUF file, a rounded copy of the model: say so beside its figures") == 1
    assert logits(file, dtype="bfloat16").dtype == torch.bfloat16


def test_it_is_converted_once_and_again_where_the_file_changes(place, whole, monkeypatch):
    write_gguf(place / "tiny.gguf", whole)
    first = logits("tiny.gguf")
    gguf._copy.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(gguf_conversion, "convert", lambda *_: pytest.fail("converted again"))
        assert torch.equal(logits("tiny.gguf"), first)
    write_gguf(place / "tiny.gguf", whole, "Q8_0")
    assert not torch.equal(logits("tiny.gguf"), first)
    assert len(copies(place)) == 2


def test_digits_apart(place):
    whole = original(place / "whole", "smollm")
    for pre in ("smollm", "starcoder"):
        words = load_tokenizer(str(write_gguf(place / f"{pre}.gguf", whole, pre=pre)))
        assert words.tokenize("of 12345") == ["of", "Ġ", "1", "2", "3", "4", "5"]
        assert words(SENTENCE).input_ids == load_tokenizer(str(whole))(SENTENCE).input_ids
    assert words.tokenize("of 12345") != load_tokenizer(str(write_gguf(place / "g.gguf", whole))).tokenize(
        "of 12345"
    )


@pytest.mark.parametrize("pre", ["made-up", "default", None])
def test_an_unknown_pre_tokenizer_is_refused_until_tokenizer_json_lies_beside(place, pre):
    whole = original(place / "whole", "smollm")
    file = write_gguf(place / "tiny.gguf", whole, pre=pre, more={"tokenizer.ggml.add_bos_token": False})
    assert ("of no name" if pre is None else repr(pre)) in refused(file)
    assert not copies(place)
    shutil.copy(whole / "tokenizer.json", place)
    gguf._copy.cache_clear()
    words = load_tokenizer(str(file))
    assert words.tokenize("of 12345") == ["of", "Ġ", "1", "2", "3", "4", "5"]
    assert words.chat_template == TEMPLATE
    assert settings_digest(str(file)) == hashlib.sha256((place / "tokenizer.json").read_bytes()).hexdigest()


def test_the_tokenizer_of_another_model_is_refused(place, whole):
    file = write_gguf(place / "tiny.gguf", whole)
    backend = json.loads((whole / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (place / "tokenizer.json").write_text(json.dumps(backend))
    said = refused(file)
    assert f"token {vocabulary['b']} is 'a' in the file and 'b' there" in said
    assert str(place / "tokenizer.json") in said


def test_words_that_are_tokens_stay_whole_where_the_name_says_so(place, whole):
    data = json.loads((whole / "tokenizer.json").read_text())
    merges = [pair for pair in data["model"]["merges"] if "".join(pair) != "Ġprice"]
    assert len(merges) < len(data["model"]["merges"])  # a token that no merge leads to
    data["model"]["merges"] = merges
    other = shutil.copytree(whole, place / "other")
    (other / "tokenizer.json").write_text(json.dumps(data))
    words = load_tokenizer(str(write_gguf(place / "tiny.gguf", other, pre="llama-bpe")))
    assert words.tokenize(" price") == ["Ġprice"]
    assert words("of").input_ids == [0, *words("of", add_special_tokens=False).input_ids]
    plain = load_tokenizer(str(write_gguf(place / "plain.gguf", other, pre="gpt-2")))
    assert plain.tokenize(" price") != ["Ġprice"]
    silent = write_gguf(
        place / "s.gguf", other, pre="llama-bpe", more={"tokenizer.ggml.add_bos_token": False}
    )
    assert load_tokenizer(str(silent))("of").input_ids[0] != 0


def test_more_ends(place, whole):
    file = write_gguf(place / "tiny.gguf", whole, more={"tokenizer.ggml.eot_token_id": 2})
    assert load_policy(file).eos_ids == [1, 2]


def test_the_frequencies_of_llama_3_come_back(place):
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    whole = original(place / "whole", rope_theta=None, rope_parameters=scaling)
    divisors = []
    for index in range(4):  # heads of 8
        wave = 2 * math.pi * 500000 ** (index / 4)
        share = (8192 / wave - 1) / 3
        divisors.append(1 if wave < 2048 else 32 if wave > 8192 else 1 / ((1 - share) / 32 + share))
    assert divisors[0] == divisors[1] == 1 < divisors[2] < divisors[3] == 32
    tensors = {"rope_freqs.weight": np.array(divisors, dtype=np.float32)}
    assert torch.equal(logits(write_gguf(place / "tiny.gguf", whole, tensors=tensors)), logits(whole))
    tensors["rope_freqs.weight"][2] += 0.5
    assert "states rope_freqs.weight" in refused(write_gguf(place / "other.gguf", whole, tensors=tensors))


SHAPE = {"vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
SHAPE |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "tie_word_embeddings": True}
KEYS = {"context_length": 128, "block_count": 2, "embedding_length": 32, "feed_forward_length": 64}
KEYS |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_epsilon": 1e-4}
T5 = {"vocab_size": 288, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
T5 |= {
    "layer_norm_epsilon": 1e-4,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
}
GPT2 = {
    "vocab_size": 288,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-4,
}


def rotary(**more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, **more}}


OTHERS = {
    # What transformers alone passes over: the base of the rotary embedding,
    "starcoder2": (
        Starcoder2Config(**SHAPE, norm_epsilon=1e-4, sliding_window=None, **rotary()),
        KEYS | {"rope.freq_base": 50000.0},
    ),
    # its width,
    "stablelm": (
        StableLmConfig(**SHAPE, layer_norm_eps=1e-4, **rotary(partial_rotary_factor=0.5)),
        KEYS | {"rope.freq_base": 50000.0, "rope.dimension_count": 4},
    ),
    # the number of positions,
    "gpt2": (GPT2Config(**GPT2, bos_token_id=0, eos_token_id=1), KEYS | {"feed_forward_length": 128}),
    # and the activation, with a gate and without one.
    "t5": (
        T5Config(**T5, feed_forward_proj="gated-gelu"),
        KEYS
        | {"attention.key_length": 8, "attention.relative_buckets_count": 32, "decoder_start_token_id": 0},
    ),
}
OTHERS["t5 "] = (T5Config(**T5, feed_forward_proj="relu"), OTHERS["t5"][1])


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_themselves(place, whole, name):
    config, keys = OTHERS[name]
    torch.manual_seed(3)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(place / "model")
    file = write_as(place / "other.gguf", name.strip(), model, keys, whole)
    assert torch.equal(logits(file), logits(place / "model"))


@pytest.mark.parametrize(
    ("more", "tensors", "why"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, {}, "rope.scaling.type yarn"),
        ({"llama.attention.sliding_window": 5}, {}, "attention.sliding_window 5"),
        ({}, {"blk.1.attn_q.bias": np.ones(32, dtype=np.float32)}, "has 32 numbers more than the llama"),
        ({"split.count": 3}, {}, "is one of 3 parts"),
        ({"llama.block_count": 4}, {}, "does not have the weights of the llama"),
    ],
)
def test_what_transformers_would_read_as_another_model_is_refused(place, whole, more, tensors, why):
    assert why in refused(write_gguf(place / "tiny.gguf", whole, more=more, tensors=tensors))
    assert not copies(place)


def test_linear_scaling(place, whole):
    more = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    scaling = {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}
    config = json.loads((whole / "config.json").read_text())
    other = shutil.copytree(whole, place / "other")
    (other / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling}))
    assert torch.equal(logits(write_gguf(place / "tiny.gguf", whole, more=more)), logits(other))


def test_broken_files_end_in_a_line(place, whole, monkeypatch, capsys):
    file = write_gguf(place / "tiny.gguf", whole)
    content = file.read_bytes()
    for length in (0, 3, 20, 1000, len(content) // 2, len(content) - 100):
        file.write_bytes(content[:length])
        assert "download it again" in refused(file, InputError)
    file.write_bytes(b"{}" * 1000)
    assert "download it again" in refused("tiny.gguf", InputError)
    with pytest.raises(InputError, match=r"model\.name: there is no file 'none\.gguf'"):
        load_policy("none.gguf")
    outcome = typed(["sft", "data.task=slots", "model.name=tiny.gguf"], monkeypatch, capsys)
    assert outcome.code == 2
    assert outcome.err.startswith("error: model.name: 'tiny.gguf' cannot be read as a GGUF file (")
    assert outcome.err.count("\n") == 1


def test_a_conversion_that_is_killed_leaves_nothing_half(place, whole):
    write_gguf(place / "tiny.gguf", whole)
    script = """
import os, signal
from transformers import PreTrainedTokenizerFast
from cagsr.models.load import load_model
PreTrainedTokenizerFast.save_pretrained = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
load_model("tiny.gguf")
"""
    ended = forked.start(partial(exec, script, {}), place)
    assert ended.wait() == -signal.SIGKILL, ended.err
    (half,) = (place / "cache/cagsr/gguf").glob("*/.*.staging")
    assert (half / "model.safetensors").exists()
    assert not copies(place)
    assert torch.equal(logits("tiny.gguf"), logits(whole))
    assert not half.exists()


def test_a_cache_that_cannot_be_written_is_named(place, whole, monkeypatch):
    write_gguf(place / "tiny.gguf", whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "tiny.gguf"))
    with pytest.raises(
        StorageError, match=r"tiny\.gguf/cagsr/gguf/[0-9a-f]{16} cannot be written: Not a directory"
    ):
        load_model("tiny.gguf")


def test_without_the_package_the_mend_is_named(place, whole, monkeypatch):
    file = write_gguf(place / "tiny.gguf", whole)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in refused(file, InputError)


def test_an_adapter_names_the_file_and_its_digest(place, whole):
    file = write_gguf(place / "tiny.gguf", whole, "Q8_0")
    policy = load_policy("tiny.gguf", lora={"r": 2})
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
        expected = policy.model(input_ids=IDS).logits
    (place / "run").mkdir()
    save_model(policy, place / "run/model")
    base = json.loads((place / "run/model/base.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert base == {"name": str(file), "revision": None, "sha256": digest, "beside": "../../tiny.gguf"}
    assert identity("tiny.gguf") == {"name": "tiny.gguf", "sha256": digest}
    assert identity_with_base("run/model")["base"]["sha256"] == digest
    assert "cache" not in (place / "run/model/adapter_config.json").read_text()
    torch.testing.assert_close(logits("run/model"), expected, rtol=0, atol=1e-4)
    # Both have moved together.
    (place / "there").mkdir()
    shutil.move("run", "there/run")
    shutil.move("tiny.gguf", "there/tiny.gguf")
    torch.testing.assert_close(logits("there/run/model"), expected, rtol=0, atol=1e-4)
    write_gguf(place / "there/tiny.gguf", whole)
    with pytest.raises(InputError, match=r"tiny\.gguf is not the base that the LoRA adapter"):
        load_model("there/run/model")
    (place / "there/tiny.gguf").unlink()
    with pytest.raises(InputError, match=r"there is no file .*tiny\.gguf"):
        load_model("there/run/model")


def test_a_loaded_model_keeps_its_file_as_the_base(place, whole):
    write_gguf(place / "tiny.gguf", whole)
    loaded, _ = load_model("tiny.gguf")
    policy = load_policy(loaded, load_tokenizer("tiny.gguf"), lora={"r": 2})
    assert policy.base is not None
    assert policy.base.name == str(place / "tiny.gguf")


def test_commands_take_a_file_where_they_take_a_directory(place, whole, monkeypatch, capsys):
    write_gguf(place / "tiny.gguf", whole)
    monkeypatch.setenv("HOME", str(place))
    (place / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"the price of {n}", "response": "678 of"}) + "\n" for n in range(4))
    )

    def run(*arguments):
        outcome = typed([*arguments], monkeypatch, capsys)
        assert outcome.code == 0, outcome.err
        return outcome.out

    model = json.loads(run("doctor", "~/tiny.gguf", "--json"))["model"]
    assert model["supported"] is True
    assert model["weights"].startswith("F32 in a GGUF file; read as float32 from ")
    small = ["data.source=rows.jsonl", "sampling.max_new_tokens=5", "sampling.candidates=2"]
    run("score", "rows.jsonl", "model.name=tiny.gguf", "reward.preset=paper")
    training = ["train.steps=1", "train.prompts_per_step=2", "train.micro_batch=4", "run.directory=run"]
    run("train", *small, *training, "model.name=~/tiny.gguf", "model.lora={r: 2}", "reward.preset=paper")
    evaluated = json.loads(
        run(
            "eval",
            "base=~/tiny.gguf",
            "trained=run/model",
            *small,
            "reward.preset=paper",
            "--split=train",
            "--json",
        )
    )
    digest = hashlib.sha256((place / "tiny.gguf").read_bytes()).hexdigest()
    assert evaluated["models"]["base"]["sha256"] == digest
    assert evaluated["models"]["trained"]["base"]["sha256"] == digest
    rows = [{"prompt": "the price of 12345"}, {"prompt": "678, and of"}]
    settings = cagsr.TrainingConfig(output_dir="again", max_steps=1, num_generations=2, preset="paper")
    trainer = cagsr.Trainer("~/tiny.gguf", settings, rows)
    trainer.train()
    assert json.loads((place / "again/run.json").read_text())["identity"]["model"] == digest
