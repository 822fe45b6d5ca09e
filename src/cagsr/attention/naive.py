"""Reference definition of attention A from eager attention weights: slow and large, what the fast way is held to."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def naive_attention(weights: Sequence[Tensor], rows: slice, columns: slice) -> Tensor:
    """Attention A [N T S] from response rows to prompt columns, mean over heads and layers.

    weights  one tensor [N H Q K] a layer, each row over the keys sums to 1 (before dropout).
    rows     the T query positions that predict the response: for a causal model ``slice(S - 1, S - 1 + T)``,
             for an encoder-decoder all decoder positions.
    columns  the S key positions of the prompt.

    Float32, in [0, 1]; rows are raw and sum to at most 1.

    Source: arXiv 2502.10482, section 3, where A is the cross-attention of the last decoder layers.
    Differs: the layers are the caller's choice, and a causal model's self-attention block takes the place of
    cross-attention.
    """
    layers = [weight[:, :, rows, columns].float().mean(1) for weight in weights]
    return torch.stack(layers).mean(0)


def piece_weights(pieces: Tensor) -> Tensor:
    """[... J S] float32: what a token weighs in the mean over a piece, of pieces [... J S] bool."""
    return pieces / pieces.sum(-1, keepdim=True).clamp(min=1)


def naive_looks(attention_NTS: Tensor, weights_NJS: Tensor) -> Tensor:
    """Looks [N T J]: the mean of a response token's attention over the tokens of each piece (`piece_weights`)."""
    return torch.einsum("nts,njs->ntj", attention_NTS, weights_NJS)


@torch.no_grad()
def eager_weights(model: PreTrainedModel, **inputs: Any) -> tuple[Tensor, ...]:
    """Attention weights [N H Q K] of every layer by transformers' eager attention, dropout off.

    Cross-attention for an encoder-decoder, self-attention otherwise. Layers without attention are left out.
    """
    implementation = model.config._attn_implementation or "eager"
    training = [module for module in model.modules() if module.training]
    model.eval()
    model.set_attn_implementation("eager")
    try:
        output = model(**inputs, output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(implementation)
        for module in training:
            module.training = True
    weights = output.cross_attentions if model.config.is_encoder_decoder else output.attentions
    return tuple(weight for weight in weights or () if weight is not None)
