"""Weights in few bits: four by bitsandbytes (QLoRA), and models that are quantised already."""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from cagsr.attention.inspection import name_of
from cagsr.errors import InputError, UnsupportedModelError

__all__ = ["four_bits", "in_floats", "is_quantised", "keep_differentiable"]


def four_bits(name: str, config: PretrainedConfig, computed: torch.dtype) -> BitsAndBytesConfig:
    """How the linear layers of a model are loaded in four bits: NF4, its scales quantised too, products computed in
    ``computed``.

    That is what QLoRA trains on (arXiv 2305.14314, sections 3 and 4). Embeddings and the output layer stay whole.

    Raises InputError for a model that is quantised already, and where bitsandbytes is not installed.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"model.load_in_4bit: {name} is quantised already; leave it out")
    try:
        import bitsandbytes  # noqa: F401 # transformers says otherwise what is missing
    except ImportError as error:
        raise InputError("model.load_in_4bit: needs bitsandbytes: pip install bitsandbytes") from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )


def is_quantised(model: nn.Module) -> bool:
    """Whether transformers has loaded a model's weights in few bits: they cannot be trained, nor an adapter merged."""
    return getattr(model, "hf_quantizer", None) is not None


def keep_differentiable(model: nn.Module) -> None:
    """Turn bitsandbytes' packed CPU kernel off (AVX512-BF16): it has no gradient, and the first pass without one packs
    the weights for good.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            layer: Any = module
            layer.support_avx512bf16_for_cpu = False


def in_floats(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A quantised model with the values of its few bits in floats, to be merged and saved as any other.

    Raises UnsupportedModelError for a kind of quantisation that transformers cannot undo.
    """
    try:
        whole: Any = model.dequantize().to(dtype)  # which leaves what was not quantised as it lay on disk
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"model.name: the weights of {name_of(model)} are quantised in a way that cannot be undone, so that "
            "nothing can be merged into them. Name the model they were made from."
        ) from error
    whole.__dict__.pop("_weight_conversions", None)  # by which transformers would save few bits again
    return whole
