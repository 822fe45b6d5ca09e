"""Languages of multilingual encoder-decoders (NLLB, M2M-100, mBART): the token that begins every response."""

import re

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.errors import InputError, closest

__all__ = ["codes_of", "set_languages", "unforced"]

MULTILINGUAL = ("m2m_100", "nllb-moe", "mbart", "plbart")
# fra_Latn (NLLB), fr_XX (mBART), __fr__ (M2M-100).
CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}|[a-z]{2}_[A-Z]{2}|__\w+__")
SHOWN = 20


def codes_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The language codes of a tokenizer, in order, and their ids: those it lists, and added tokens that look so."""
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    found = {code: number for code, number in added.items() if CODE.fullmatch(code)}
    found |= getattr(tokenizer, "lang_code_to_id", {})
    return {code: found[code] for code in sorted(found)}


def set_languages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: str | None, source: str | None
) -> None:
    """Make every response begin with the token of ``target``, and the tokenizer mark prompts as ``source``.

    Both are written into what is saved with the model. None leaves a language as it is. Raises InputError for a code
    that the tokenizer does not know, and for a model or tokenizer that has no languages.
    """
    if target is not None:
        token = _token(tokenizer, target, "model.target_language")
        if not model.config.is_encoder_decoder:
            raise InputError(
                "model.target_language: only an encoder-decoder begins with a language; leave it out"
            )
        generation = model.generation_config
        # An mBART of 25 languages begins with the language itself, later ones with </s> and the language.
        if generation.decoder_start_token_id in (None, *codes_of(tokenizer).values()):
            generation.decoder_start_token_id = token
        else:
            generation.forced_bos_token_id = token
    if source is not None:
        _token(tokenizer, source, "model.source_language")
        if not hasattr(tokenizer, "src_lang"):
            raise InputError(
                f"model.source_language: {type(tokenizer).__name__} marks no language; write it into the prompts"
            )
        tokenizer.src_lang = source


def unforced(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What to say of a multilingual model that does not know which language to write; None: nothing."""
    generation = model.generation_config
    if (
        model.config.model_type not in MULTILINGUAL
        or generation.forced_bos_token_id is not None
        or generation.decoder_start_token_id in codes_of(tokenizer).values()
    ):
        return None
    codes = list(codes_of(tokenizer))
    more = f" ... ({len(codes)} in all)" if len(codes) > SHOWN else ""
    return (
        f"{model.config.model_type} writes many languages, and nothing says which: set model.target_language, or "
        "forced_bos_token_id in the model's generation config"
        + (f", to one of {', '.join(codes[:SHOWN])}{more}" if codes else "")
    )


def _token(tokenizer: PreTrainedTokenizerBase, code: str, key: str) -> int:
    codes = codes_of(tokenizer)
    for spelt in (code, f"__{code}__"):
        if spelt in codes:
            return codes[spelt]
    raise InputError(
        f"{key}: the tokenizer knows no language {code!r}{closest(code, codes)}"
        if codes
        else f"{key}: the tokenizer has no languages, so not {code!r} either; leave it out"
    )
