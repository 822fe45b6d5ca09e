"""Small models and tokenizers made from scratch, for tasks that fit a laptop and for tests."""

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from cagsr.attention.reading import ATTENTION

__all__ = ["new_model", "new_tokenizer"]


def new_model(
    architecture: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: int = 3,
    hidden: int = 128,
    heads: int = 4,
    context: int = 512,
) -> PreTrainedModel:
    """A T5-, BART- or Llama-shaped model with random weights; its feed-forward layers are twice as wide.

    Seed torch before the call for the same weights again. Dropout is off: see `cagsr.models.load`.
    """
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": pad,
        "eos_token_id": eos,
        "attn_implementation": ATTENTION,
    }
    size: dict[str, int] = {"layers": layers, "hidden": hidden, "heads": heads}
    if architecture == "t5":
        model = T5ForConditionalGeneration(T5Config(**common, **_t5(**size, pad=pad)))
    elif architecture == "bart":
        shape = _bart(**size, context=context, pad=pad, eos=eos)
        model = BartForConditionalGeneration(BartConfig(**common, **shape))
    elif architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common, **_llama(**size, context=context)))
    else:
        raise ValueError(f"architecture must be t5, bart or llama, got {architecture!r}")
    return model.eval()


def _t5(layers: int, hidden: int, heads: int, pad: Any) -> dict[str, Any]:
    """The T5 config keys of a size."""
    return {
        "d_model": hidden,
        "d_kv": hidden // heads,
        "d_ff": 2 * hidden,
        "num_layers": layers,
        "num_heads": heads,
        "dropout_rate": 0.0,
        "decoder_start_token_id": pad,
    }


def _bart(layers: int, hidden: int, heads: int, context: int, pad: Any, eos: Any) -> dict[str, Any]:
    """The BART config keys of a size."""
    return {
        "d_model": hidden,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 2 * hidden,
        "decoder_ffn_dim": 2 * hidden,
        "max_position_embeddings": context,
        "dropout": 0.0,
        "forced_eos_token_id": None,
        "bos_token_id": pad,
        "decoder_start_token_id": eos,
    }


def _llama(layers: int, hidden: int, heads: int, context: int) -> dict[str, Any]:
    """The Llama config keys of a size."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        # The default of .02 is for widths in the thousands; at 128 learning to copy takes twice the steps.
        "initializer_range": 0.06,
        "bos_token_id": None,
    }


def new_tokenizer(texts: Iterable[str], architecture: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learnt from ``texts``; an encoder-decoder's inputs end with ``</s>``."""
    pad, eos = "<pad>", "</s>"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[pad, eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if architecture != "llama":
        number = backend.token_to_id(eos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, number)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
