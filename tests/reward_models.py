"""Tiny reward models on disk, with random weights: what tests of reward models stand on."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import tiny
from cagsr.rewards.reward_model import LAYOUT, SPLIT

T5 = {"d_model": 20, "d_kv": 4, "d_ff": 28, "num_layers": 2, "num_heads": 5}
SHAPES = {
    "t5": T5 | {LAYOUT: SPLIT},
    "t5-one-text": T5,
    "llama": {
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "max_position_embeddings": 64,
    },
}


@cache
def saved(name: str, labels: int = 1) -> str:
    """Directory of a reward model of the shape ``name``, with a tokenizer of words."""
    directory = str(Path(tempfile.mkdtemp(prefix="reward-model-")) / name)
    words = tiny._tokenizer("causal" if name == "llama" else "encoder-decoder")
    kind = name.split("-")[0]
    eos = words.eos_token_id
    ids = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "eos_token_id": eos}
    start = {"decoder_start_token_id": 0} if kind == "t5" else {"bos_token_id": None}
    config = AutoConfig.for_model(kind, num_labels=labels, **ids, **start, **SHAPES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def words(count: int, first: int = 0) -> str:
    """A text of ``count`` words that the tokenizer knows."""
    tokenizer = tiny._tokenizer("causal")
    return " ".join(tokenizer.convert_ids_to_tokens(range(20 + first, 20 + first + count)))
