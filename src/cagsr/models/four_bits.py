"""Weights in few bits: four by bitsandbytes (QLoRA), and models that are quantised already."""

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from cagsr.errors import InputError

__all__ = ["four_bits", "is_quantised"]


def four_bits(computed: torch.dtype) -> BitsAndBytesConfig:
    """How linear layers are loaded in four bits: NF4, its scales quantised too, products computed in ``computed``.

    That is what QLoRA trains on (arXiv 2305.14314, sections 3 and 4). Embeddings and the output layer stay whole.

    Raises InputError where bitsandbytes is not installed.
    """
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
