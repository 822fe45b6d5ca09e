"""Inspection of a loaded model: which layers' attention can be read exactly, found and checked by small passes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from cagsr.attention.capture import capture, recorded_calls
from cagsr.attention.naive import eager_weights, naive_attention
from cagsr.attention.reading import ATTENTION, Readable
from cagsr.errors import InputError, UnsupportedModelError

# Distinct primes, so that no transposed or merged attention has the right shape by accident.
PROMPT, RESPONSE = 7, 5

SHORT = (torch.bfloat16, torch.float16)

TOLERANCE = 1e-3
"""Share of the largest weight by which a reading may differ: sdpa and eager round otherwise in the layers below, which
moves a weight the more, the sharper attention is."""

CANNOT_GENERATE = "{name} cannot generate; needs a causal or encoder-decoder LM."


def inspect(model: PreTrainedModel, layers: str | Sequence[int] = "all") -> Readable:
    """Find the attention modules of ``model`` that can be read exactly, and choose ``layers`` of them.

    layers  "all", "last", "last_half" (the later half, rounded up), or layer numbers counted from 0.

    The model runs a few times on two sequences of 12 tokens; its mode and attention implementation are left
    as they were. Every chosen layer is compared with the model's own eager attention.

    Raises UnsupportedModelError for a model whose attention cannot be read exactly, and InputError for layers
    that it does not have.
    """
    name = name_of(model)
    if not model.can_generate():
        raise UnsupportedModelError(CANNOT_GENERATE.format(name=name))
    kind = "encoder-decoder" if model.config.is_encoder_decoder else "causal"
    if getattr(model.config.get_text_config(decoder=True), "index_topk", None):
        raise UnsupportedModelError(
            f"{name} chooses by an index which keys its attention sees, for implementations that it knows by name, "
            f"and {ATTENTION!r} is none of them. Choose a model with dense attention."
        )
    with evaluating(model):
        found = _find(model, kind, name)
        readable = _choose(model, kind, found, layers)
        _verify(model, readable, found, name)
    return readable


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Context manager that puts the model in eval mode, and its modules back in training mode afterwards."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def token_ids(model: PreTrainedModel, count: int) -> Tensor:
    """``count`` token ids that the model embeds, none of them padding.

    From the second quarter of the vocabulary: the first ids are often special tokens, whose states are so large that
    short float types round everything else away.
    """
    embeddings = cast(nn.Embedding, model.get_input_embeddings())
    # Not every config has it: transformers 5 gives it to those alone that declare it.
    padding = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    rows = len(embeddings.weight)  # not num_embeddings, which PEFT's wrapper of an embedding does not have
    valid = [token for token in range(rows // 4, rows // 2, max(rows // 256, 1)) if token != padding] or [0]
    ids = torch.tensor([valid[j % len(valid)] for j in range(count)])
    return ids.to(embeddings.weight.device)


def name_of(model: PreTrainedModel) -> str:
    """What error messages call the model: where it was loaded from, or its type."""
    return model.config.name_or_path or model.config.model_type


def _probe(model: PreTrainedModel, kind: str) -> dict[str, Tensor]:
    """Inputs of two prompts and responses of valid ids: one full, one whose prompt and response are padded."""
    ids = token_ids(model, 2 * (PROMPT + RESPONSE))
    prompt, response = ids.view(2, -1).split((PROMPT, RESPONSE), dim=1)
    prompt_mask, response_mask = torch.ones_like(prompt), torch.ones_like(response)
    response_mask[1, -1] = 0
    if kind == "causal":
        prompt_mask[1, :2] = 0
        return {
            "input_ids": torch.cat([prompt, response], 1),
            "attention_mask": torch.cat([prompt_mask, response_mask], 1),
        }
    prompt_mask[1, -2:] = 0
    return {
        "input_ids": prompt,
        "attention_mask": prompt_mask,
        "decoder_input_ids": response,
        "decoder_attention_mask": response_mask,
    }


def _positions(kind: str) -> tuple[slice, slice]:
    """Rows and columns of the probe: a causal model predicts a token one position before it."""
    start = PROMPT - 1 if kind == "causal" else 0
    return slice(start, start + RESPONSE), slice(0, PROMPT)


@torch.no_grad()
def _find(model: PreTrainedModel, kind: str, name: str) -> dict[int, nn.Module]:
    """Attention modules that could be read, by layer number, in the order in which the model runs them."""
    names = {module: path for path, module in model.named_modules()}
    with recorded_calls() as calls:
        model(**_probe(model, kind), use_cache=False)
    queries, keys = (RESPONSE, PROMPT) if kind == "encoder-decoder" else (PROMPT + RESPONSE,) * 2
    right = [call.module for call in calls if (call.queries, call.keys) == (queries, keys)]
    if not calls:
        _refuse_silent(model, name)
    if kind == "encoder-decoder" and any(call.keys == PROMPT + RESPONSE for call in calls):
        raise UnsupportedModelError(
            f"{name} merges self-attention and cross-attention into one softmax, which cannot be read "
            "exactly. Choose an encoder-decoder with separate cross-attention, such as T5 or BART."
        )
    if not right:
        raise UnsupportedModelError(
            f"{name}: no attention from {queries} response to {keys} prompt positions was found; its "
            "attention modules shorten or merge their inputs, so they cannot be read. Choose another model."
        )
    if len(set(right)) < len(right):
        raise UnsupportedModelError(
            f"{name} runs the same attention module several times, which cannot be read. Choose another model."
        )
    numbers = [int(match[0]) if (match := re.search(r"\d+", names[module])) else 0 for module in right]
    if len(set(numbers)) < len(numbers):
        numbers = list(range(len(right)))
    return dict(zip(numbers, right, strict=True))


def _refuse_silent(model: PreTrainedModel, name: str) -> None:
    """Raise for a model that never called the attention function: it has none, or uses another implementation."""
    if model.config._attn_implementation != ATTENTION and any(
        _looks_like_attention(m) for m in model.modules()
    ):
        raise UnsupportedModelError(
            f"{name} was loaded with attn_implementation={model.config._attn_implementation!r}. Load it with "
            f'attn_implementation="{ATTENTION}", or call model.set_attn_implementation("{ATTENTION}").'
        )
    raise UnsupportedModelError(
        f"{name} has no attention that transformers' attention interface reaches (as Mamba and RWKV have "
        "none), so there is nothing to read. Choose a model with attention in its layers."
    )


def _looks_like_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _choose(
    model: PreTrainedModel, kind: str, found: dict[int, nn.Module], layers: str | Sequence[int]
) -> Readable:
    numbers = list(found)
    chosen = {"all": numbers, "last": numbers[-1:], "last_half": numbers[len(numbers) // 2 :]}
    if isinstance(layers, str):
        if layers not in chosen:
            raise InputError(f"layers must be all, last, last_half or a list of numbers, got {layers!r}.")
        wanted = chosen[layers]
    else:
        wanted = [number for number in numbers if number in layers]
        missing = sorted(set(layers) - set(numbers))
        if missing or not wanted:
            raise InputError(
                f"{name_of(model)} has no readable attention in layers {missing or list(layers)}; "
                f"choose from {', '.join(map(str, numbers))}."
            )
    return Readable(kind, tuple(found[number] for number in wanted), tuple(wanted), len(numbers))


class _Widened(TorchFunctionMode):
    """Context manager in which a model of a short float type computes in float32, with the weights that it has.

    Eager and sdpa round otherwise in bfloat16, by 2^-9 of every score, and every layer adds to it: on SmolLM2 the
    weights are 5 % apart in the sixth of 30 layers. No bound on that would tell a wrong scale from rounding. A weight
    is in float32 only while it is used, so that this costs the memory of one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_wide, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """`_Widened`, but for weights that are wide already: it looks at every argument of every operation."""
    wide = all(weight.dtype in (torch.float32, torch.float64) for weight in model.parameters())
    return nullcontext() if wide else _Widened()


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in SHORT else value
    return torch.float32 if value in SHORT else value


@torch.no_grad()
def _verify(model: PreTrainedModel, readable: Readable, found: dict[int, nn.Module], name: str) -> None:
    """Compare what capture reads with the model's own eager weights, layer by layer, in one pass each."""
    inputs = _probe(model, readable.kind)
    rows, columns = _positions(readable.kind)
    with _widened(model):
        weights = dict(zip(found, eager_weights(model, **inputs), strict=False))
    if len(weights) != len(found):
        raise UnsupportedModelError(
            f"{name} runs attention in {len(found)} layers and returns weights for {len(weights)}, so its "
            "attention cannot be checked. Choose another model."
        )
    with ExitStack() as stack:
        readings = {
            number: stack.enter_context(
                capture(Readable(readable.kind, (module,), (number,), 1), rows, columns)
            )
            for number, module in zip(readable.layers, readable.modules, strict=True)
        }
        with _widened(model):
            model(**inputs, use_cache=False)
    prompt_mask = inputs["attention_mask"][:, columns].bool()
    queries = inputs.get("decoder_attention_mask", inputs["attention_mask"]).bool()
    for number, reading in readings.items():
        weight, read = weights[number], reading.attention[queries[:, rows]]
        if readable.kind == "causal" and (weight.mean(1) * queries[:, :, None]).triu(1).any():
            # It looks ahead: an encoder under a language-model head, such as BertLMHeadModel.
            raise UnsupportedModelError(CANNOT_GENERATE.format(name=name))
        expected = naive_attention([weight], rows, columns)[queries[:, rows]]
        difference = (read - expected).abs().max().item()
        if not difference <= TOLERANCE * expected.max().item():
            raise UnsupportedModelError(
                f"{name}: attention of layer {number} cannot be read exactly (it differs from the model's "
                f"own eager weights by {difference:.1e}). Leave the layer out or choose another model."
            )
        if (
            reading.attention.sum(1)[~prompt_mask].any()
            or read.min() < 0
            or read.sum(-1).max() > 1 + TOLERANCE
        ):
            raise UnsupportedModelError(
                f"{name}: attention of layer {number} is not a distribution over tokens. Choose another model."
            )
