"""The base of a LoRA adapter on a loaded model: proved to lie somewhere that it can be loaded from again."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cagsr.io.adapters import Base, adapter_at, base_at
from cagsr.io.provenance import identity
from cagsr.models.dropout import without_randomness
from cagsr.models.four_bits import is_quantised
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.gguf import files_of
from cagsr.models.lora import import_peft, is_adapted, plain_name

__all__ = ["proven_base"]

NOT_COMPUTED = {"dtype", "transformers_version", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id"}
"""Keys of a config that change nothing that is computed."""


def proven_base(model: PreTrainedModel, adapted: nn.Module, revision: str | None = None) -> Base | None:
    """The base that an adapter on a loaded ``model`` can be saved for; None where there is none.

    That is where the model says it comes from, if loading it from there gives its weights and config (both are in
    memory for that), and if the adapter alone is trained. ``adapted`` is the PEFT model around it, or the model itself;
    ``revision`` that of its name on the hub.
    """
    name = model.config.name_or_path
    if not name or adapter_at(name, revision) is not None or not _only_adapter(adapted):
        return None
    commit = identity(name, revision).get("revision")
    where: dict[str, Any] = {"revision": commit, "dtype": model.dtype, "use_safetensors": True}
    if is_quantised(model):  # its weights are in no file as they are
        return base_at(name, commit)
    try:
        again = type(model).from_pretrained(files_of(name), **where)
    except Exception:  # libraries raise errors of any class: it is not there, whatever the reason
        return None
    own = {plain_name(key): value for key, value in model.state_dict().items()}
    for key, value in again.state_dict().items():
        if key not in own or not torch.equal(own[key].cpu(), value.to(own[key].dtype)):
            return None
    without_randomness(again)  # as of the model, whose dropout is off by now
    return base_at(name, commit) if _told(again) == _told(model) else None


def _told(model: PreTrainedModel) -> tuple[Any, ...]:
    """What the configs of a model tell of what it computes, which tokens end a response, and which it never writes."""
    config, generation = model.config.to_dict(), model.generation_config
    computed = {key: value for key, value in config.items() if key[0] != "_" and key not in NOT_COMPUTED}
    rules = GenerationRules.of(generation, (), causal=False)
    return computed, generation.eos_token_id, rules.never, rules.not_first


def _only_adapter(adapted: nn.Module) -> bool:
    """Whether PEFT would save in one directory all that is trained of a model; a model without adapter has nothing."""
    if not is_adapted(adapted):
        return True
    model: Any = adapted
    if [*model.peft_config] != ["default"]:
        return False
    weights = dict(model.named_parameters(remove_duplicate=False))
    kept = import_peft("model").get_peft_model_state_dict(model, weights, save_embedding_layers=False)
    saved = {id(weight) for weight in kept.values()}
    return all(id(weight) in saved for weight in weights.values() if weight.requires_grad)
