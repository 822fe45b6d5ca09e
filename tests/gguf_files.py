"""A tiny Llama with a byte-level vocabulary, and GGUF files of it as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

__all__ = ["PIECES", "TEMPLATE", "original", "write_as", "write_gguf"]

TEMPLATE = "{% for message in messages %}<|turn|>{{ message['content'] }}<|end|>{% endfor %}<|turn|>"
SPECIAL = ["<|turn|>", "<|end|>", "<|none|>"]
# Long numbers, so that merges across digits are learned: a tokenizer that keeps digits apart then shows.
TEXT = ["the price of 12345 is 678, and of 12345 don't say 678"] * 20

PIECES = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
}
"""How a text is divided by the pre-tokenizers of these names."""

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def original(directory: Path, pieces: str = "gpt-2", **config: Any) -> Path:
    """Save the Llama and its tokenizer; 4 heads of 8, 2 of keys, 3 layers. Returns ``directory``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PIECES["gpt-2"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.pre_tokenizer = PIECES[pieces]
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|turn|>", eos_token="<|end|>", chat_template=TEMPLATE
    )
    words.save_pretrained(directory)
    torch.manual_seed(5)
    shape: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.3,
    }
    LlamaForCausalLM(LlamaConfig(**shape | config)).save_pretrained(directory)
    return directory


def write_gguf(
    path: Path,
    whole: Path,
    kind: str = "F32",
    *,
    pre: str | None = "gpt-2",
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the model in ``whole`` as a GGUF file, its matrices as ``kind``, with ``more`` keys and ``tensors``."""
    model: Any = AutoModelForCausalLM.from_pretrained(whole)
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny Llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, whole, pre)
    for key, value in (more or {}).items():
        add = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
        }
        add[type(value)](key, value)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value, name = weight.numpy(), _named(name)
        for part, count in heads.items():
            if part in name:  # llama.cpp rotates neighbours, transformers halves
                value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if value.ndim == 2:
            kind_of = GGMLQuantizationType[kind]
            writer.add_tensor(name, quants.quantize(value, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(name, value)
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    return _written(writer, path)


def write_as(path: Path, architecture: str, model: Any, keys: dict[str, Any], whole: Path) -> Path:
    """Write a model of two layers as a GGUF file of another architecture, its weights as they are but for Conv1D's.

    ``keys`` are those of the architecture; the tokenizer is that in ``whole``.
    """
    writer = GGUFWriter(path, architecture)
    _add_tokenizer(writer, whole, "gpt-2")
    for key, value in keys.items():
        add = {int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{key}", value)
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, 2)
    for name, weight in model.state_dict().items():
        part, _, end = name.rpartition(".")
        if name != "lm_head.weight" and not name.endswith(
            "coder.embed_tokens.weight"
        ):  # tied to the embedding
            value = weight.T if isinstance(model.get_submodule(part), Conv1D) and weight.ndim == 2 else weight
            writer.add_tensor(f"{names.get_name(part)}.{end}", value.contiguous().numpy())
    return _written(writer, path)


def _written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter, whole: Path, pre: str | None) -> None:
    backend = Tokenizer.from_file(str(whole / "tokenizer.json"))
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in SPECIAL else 1 for token, _ in vocabulary])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)


def _named(name: str) -> str:
    part = name.removesuffix(".weight")
    if part.startswith("model.layers."):
        _, _, layer, part = part.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[part]}.weight"
