"""Refusals of models that do not load, or whose parts do not belong together, in words that tell how to mend it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.attention.reading import ATTENTION
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.safetensors_only import reason

__all__ = ["check_vocabulary", "check_weights", "not_loaded", "of_adapter", "refusal"]


def refusal(name: str, model_type: str, kind: str, error: Exception) -> InputError:
    """The InputError for a model that did not load; libraries raise errors of any class for broken files."""
    if isinstance(error, KeyError) and error.args == (ATTENTION,):
        return UnsupportedModelError(
            f"{name} ({model_type}) computes attention in classes of its own, which transformers' attention "
            "interface does not reach, so it cannot be read. Choose another model; `cagsr doctor` tells."
        )
    if isinstance(error, ValueError):
        why = "." if "Unrecognized configuration class" in str(error) else f": {reason(error)}"
        return UnsupportedModelError(
            f"{name} ({model_type}) cannot generate, or not as {kind}; needs a causal or encoder-decoder LM{why}"
        )
    return not_loaded("the weights", name, error)


def not_loaded(part: str, name: str, error: Exception) -> InputError:
    """The InputError for a part ("the tokenizer") of the model ``name`` that did not load."""
    if os.path.isdir(name):
        if part == "the tokenizer" and not any(file.startswith("tokenizer") for file in os.listdir(name)):
            return InputError(
                f"model.name: {name!r} has no tokenizer (tokenizer.json); save that of the model it was made from there"
            )
        return InputError(f"model.name: {part} in {name!r} cannot be loaded: {reason(error)}")
    return InputError(f"model.name: no directory {name!r} here, and not loaded from the hub: {reason(error)}")


@contextmanager
def of_adapter(name: str) -> Iterator[None]:
    """Context manager in which a base is loaded: what is wrong is said of that, and not of its adapter ``name``."""
    try:
        yield
    except InputError as error:
        why = str(error).removeprefix("model.name: ")
        raise type(error)(f"model.name: the base of the LoRA adapter {name} does not load: {why}") from error


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a tokenizer with more tokens than the model embeds."""
    # The decoder of a composite may have another vocabulary than its encoder.
    halves = (
        getattr(half, "weight", None)
        for half in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    rows = min(len(weight) for weight in halves if weight is not None)
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer knows {len(tokenizer)} tokens and the model embeds {rows}: they do not belong together. "
            "Load both from one place, or resize the model's embeddings."
        )


def check_weights(name: str, found: dict[str, Any]) -> None:
    """Raise InputError for weights that transformers ``found`` missing, or of another shape."""
    for keys, problem in (
        (sorted(found["missing_keys"]), "are not in the checkpoint"),
        (sorted(key[0] for key in found["mismatched_keys"]), "have other shapes in the checkpoint"),
    ):
        if keys:
            raise InputError(
                f"model.name: {name}: {len(keys)} weights that config.json asks for {problem} (first: {keys[0]}). "
                "Load a language model whose config and weights belong together."
            )
