"""Policies to observe with: a model as it is, put back afterwards, or a copy that stays as the model is now."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.attention.inspection import evaluating
from cagsr.errors import InputError
from cagsr.io.places import expanded
from cagsr.models.load import load_model, load_tokenizer, make_policy
from cagsr.models.loaded import attention_as_before, base_of, policy_of, speak, tokenizer_of, uncover_forward
from cagsr.models.policy import Policy

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["frozen_policy", "observing"]


@contextmanager
def observing(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel | Policy",
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
) -> Iterator[Policy]:
    """Context manager: a policy to observe with, in eval mode; the model is as before when the block ends.

    A model loaded by name goes to Accelerate's device, a loaded one stays where it is. A `Policy`, which was probed
    when it was made, is used as it is, with its own layers and temperature.

    Raises what `load_policy` raises.
    """
    if isinstance(model, Policy):
        if (layers, temperature) != ("all", 1.0) or processing_class not in (None, model.tokenizer):
            raise InputError(
                "model: a Policy has a tokenizer, layers and a temperature of its own; leave these out, or give "
                "load_policy others"
            )
        with evaluating(model.model):
            yield model
    elif isinstance(model, str | os.PathLike):
        policy = frozen_policy(model, processing_class, layers=layers, temperature=temperature)
        yield policy.to(PartialState().device)
    else:
        base = base_of(model)
        tokenizer = tokenizer_of(base, processing_class, {})
        speak(base, tokenizer)
        with evaluating(cast(PreTrainedModel, model)), attention_as_before(base):
            yield policy_of(model, tokenizer, {"layers": layers, "temperature": temperature})


def frozen_policy(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel",
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
) -> Policy:
    """A policy that stays as the model is now while the model is trained: a fixed observer.

    Of a loaded model it is a copy. Of a PEFT model it is the base without the adapter, and only what is trained is
    copied: the frozen weights are the model's own, so that they need no memory again and move with it to its device.
    What is loaded by name lies on the CPU.

    Parameters and errors are those of `load_policy`.
    """
    settings: dict[str, Any] = {"layers": layers, "temperature": temperature}
    if isinstance(model, str | os.PathLike):
        where = {"revision": revision, "trust_remote_code": trust_remote_code}
        name = expanded(model)
        tokenizer = processing_class or load_tokenizer(name, **where)
        loaded, _ = load_model(name, dtype=dtype, **where)
        speak(loaded, tokenizer)
        return make_policy(loaded.requires_grad_(False), tokenizer, **settings).eval()
    base = base_of(model)
    tokenizer = tokenizer_of(base, processing_class, {})
    speak(base, tokenizer)
    if model is base:
        frozen = copy.deepcopy(base).requires_grad_(False)
    else:
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        frozen = cast("PeftModel", copy.deepcopy(model, shared))
        # Not `unload`, which keeps the modules that PEFT trains as a whole (``modules_to_save``).
        cast(Any, frozen.base_model).disable_adapter_layers()
    uncover_forward(frozen)
    return policy_of(frozen.eval(), tokenizer, settings)
