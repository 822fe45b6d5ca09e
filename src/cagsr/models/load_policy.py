"""`load_policy`, the entry point of Python programs: a policy from a model's name or from a loaded model."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.config.schema import Lora
from cagsr.errors import InputError
from cagsr.io.adapters import adapter_at, base_at
from cagsr.io.places import expanded
from cagsr.io.provenance import identity
from cagsr.models.dropout import without_randomness
from cagsr.models.load import load_model, load_tokenizer, make_policy, read_generation
from cagsr.models.loaded import (
    FORCED,
    attention_as_before,
    base_of,
    check_adapters,
    check_configs,
    policy_of,
    speak,
    tokenizer_of,
    uncover_forward,
)
from cagsr.models.lora import with_lora
from cagsr.models.lora_base import proven_base
from cagsr.models.lora_start import Start, adapter_to_go_on_from, base_to_go_on_with, going_on_from
from cagsr.models.policy import Policy
from cagsr.models.proof import prove_training

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["load_policy"]


class Speech(NamedTuple):
    """Languages that a model writes and reads, and the settings of its generation config that are left out."""

    target: str | None
    source: str | None
    ignored: Sequence[str]


def load_policy(
    model: "str | os.PathLike[str] | PreTrainedModel | PeftModel",
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    load_in_4bit: bool = False,
    architecture: str = "auto",
    trust_remote_code: bool = False,
    layers: str | list[int] = "all",
    temperature: float = 1.0,
    critic: bool = False,
    lora: Lora | Mapping[str, Any] | None = None,
    ignore_generation_config: Sequence[str] = (),
    target_language: str | None = None,
    source_language: str | None = None,
) -> Policy:
    """A policy that samples, scores, observes and can be trained, from a model's name or from a loaded model.

    model             directory or hub name; a transformers model, in either mode and with any attention implementation;
                      or a PEFT model, whose adapter is then what is trained.
    processing_class  its tokenizer, a fast one; None: the one that lies where the model was loaded from.
    revision, trust_remote_code, dtype ("float32", "bfloat16"), architecture ("auto", "causal", "encoder-decoder")
                      of a model that is loaded by name; a loaded model has its own.
    load_in_4bit      keep the weights of such a model in four bits (NF4), and compute in ``dtype``: QLoRA, arXiv
                      2305.14314. Needs bitsandbytes. A loaded model may be in four bits already.
    layers            whose attention is read: "all", "last", "last_half", or numbers counted from 0.
    temperature       of the distribution that responses are sampled from; log-probabilities are of that one.
    critic            add a value head, for PPO; it begins, like an adapter, with torch's random numbers: seed them.
    lora              train a LoRA adapter instead of the weights: ``r``, ``alpha``, ``target_modules``; or go on from
                      one of this model, ``path``, which is then where training starts.
    ignore_generation_config  settings of the model's generation config that are left out of its distribution.
    target_language, source_language   codes of a multilingual model ("fra_Latn"); None: what model and tokenizer say.

    A loaded model stays usable. Changed on it: attention implementation ("cagsr": ``sdpa`` where nobody reads), eval
    mode, dropout rates 0 (``policy.dropout`` keeps its config's, which `save_model` writes), a ``forward`` that another
    trainer put over its own is taken off, and with ``lora`` PEFT puts its layers into it.

    Raises UnsupportedModelError for a model whose attention cannot be read exactly, that computes something else among
    other prompts than alone (`models.proof`) or stays random while it is trained, and InputError for all else that
    cannot be used; a model that is refused keeps its attention implementation.
    """
    where = {"revision": revision, "trust_remote_code": trust_remote_code}
    speech = _speech(target_language, source_language, ignore_generation_config)
    settings = {"layers": layers, "temperature": temperature, "critic": critic, "ignored": speech.ignored}
    adapter = None if lora is None else _lora(lora)
    if isinstance(model, str | os.PathLike):
        where |= {"dtype": dtype, "load_in_4bit": load_in_4bit, "architecture": architecture}
        policy = _by_name(expanded(model), processing_class, adapter, where, speech, settings)
    else:
        policy = _of_loaded(model, processing_class, adapter, where, speech, settings)
    if adapter is not None and adapter.path is None:
        with_lora(policy, **adapter.model_dump(exclude={"path"}))
    return policy.eval()


def _speech(target: str | None, source: str | None, ignored: Sequence[str]) -> Speech:
    if target is not None and FORCED in ignored:
        raise InputError(
            f"model.target_language: it is forced as the first token, and sampling.ignore_generation_config leaves out "
            f"{FORCED}; leave one of them out"
        )
    return Speech(target, source, ignored)


def _by_name(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: Lora | None,
    where: Mapping[str, Any],
    speech: Speech,
    settings: Mapping[str, Any],
) -> Policy:
    revision, trusts = where["revision"], where["trust_remote_code"]
    if adapter is not None and adapter.path is not None:
        start = adapter_to_go_on_from(adapter.path, name, revision)
        return _going_on(name, start, tokenizer, where, speech, settings)
    tokenizer = tokenizer or load_tokenizer(name, revision=revision, trust_remote_code=trusts)
    adapts_whole = adapter is not None and adapter_at(name, revision) is None
    if adapts_whole:  # the branch of a name may move while it is loaded
        revision = identity(name, revision).get("revision")
    loaded, dropout = load_model(name, **{**where, "revision": revision})
    speak(loaded, tokenizer, *speech)
    policy = make_policy(loaded, tokenizer, dropout=dropout, **settings)
    prove_training(policy)
    if adapts_whole:
        policy.base = base_at(name, revision)
    return policy


def _going_on(
    name: str,
    start: Start,
    tokenizer: PreTrainedTokenizerBase | None,
    where: Mapping[str, Any],
    speech: Speech,
    settings: Mapping[str, Any],
) -> Policy:
    """The policy of a base with an adapter on it, and with the tokenizer and generation config that lie beside that."""
    own = (start.directory / "tokenizer_config.json").is_file()
    of_base = {"revision": start.base.revision, "trust_remote_code": where["trust_remote_code"]}
    tokenizer = tokenizer or (
        load_tokenizer(str(start.directory)) if own else load_tokenizer(name, **of_base)
    )
    base, dropout = load_model(name, **{**where, "revision": start.base.revision})
    read_generation(base, start.directory)
    speak(base, tokenizer, *speech)
    adapted = going_on_from(base, start)
    without_randomness(adapted)  # the adapter's dropout
    policy = make_policy(base, tokenizer, dropout=dropout, **settings)
    policy.model, policy.base = adapted, base_to_go_on_with(start.directory, name, start.base.revision)
    prove_training(policy)
    return policy


def _of_loaded(
    model: "PreTrainedModel | PeftModel",
    tokenizer: PreTrainedTokenizerBase | None,
    adapter: Lora | None,
    where: Mapping[str, Any],
    speech: Speech,
    settings: Mapping[str, Any],
) -> Policy:
    base = base_of(model)
    if adapter is not None and adapter.path is not None:
        raise InputError(
            "lora.path: goes with the name of a model. Put the adapter on a loaded one yourself: "
            "peft.PeftModel.from_pretrained(model, path, is_trainable=True)"
        )
    check_adapters(model, base, adapter)
    check_configs(base)
    tokenizer = tokenizer_of(base, tokenizer, where)
    with attention_as_before(base) as keep_new:
        uncover_forward(model)
        speak(base, tokenizer, *speech)
        policy = policy_of(model, tokenizer, settings)
        policy.dropout |= without_randomness(policy.model)
        prove_training(policy)
        if adapter is not None or model is not base:
            policy.base = proven_base(base, model, where["revision"])
        keep_new()
    return policy


def _lora(given: Lora | Mapping[str, Any]) -> Lora:
    try:
        lora = given if isinstance(given, Lora) else Lora.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("lora", *first["loc"])))
        raise InputError(f"{where}: {first['msg']}; expected r, alpha and target_modules, or path") from error
    for name in lora.beside_path:
        raise InputError(
            f"lora.{name}: the adapter at lora.path has settings of its own; leave one of them out"
        )
    return lora
