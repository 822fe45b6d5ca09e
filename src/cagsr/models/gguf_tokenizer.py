"""The tokenizer of a GGUF file, from its metadata or from the tokenizer.json beside it, never by a guess."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from cagsr.errors import UnsupportedModelError

__all__ = ["tokenizer_of"]

BYTE_LEVEL = "gpt2"
"""Kind of vocabulary (``tokenizer.ggml.model``) whose pre-tokenizer has to be known by its name."""

AS_GPT2 = "gpt-2"
"""The pre-tokenizer (``tokenizer.ggml.pre``) that transformers takes for any that it does not know."""

DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Pre-tokenizers that take every digit by itself and then split as GPT-2's."""

WHOLE_WORDS = (
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
)
"""Pre-tokenizers whose words are taken whole where the vocabulary has them, and whose texts begin with BOS unless the
file says otherwise (Source: llama.cpp, ``llama-vocab.cpp``, where both follow from the name alone)."""


def tokenizer_of(path: Path, beside: Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of the GGUF file at ``path``; special tokens and chat template are those of its metadata.

    A tokenizer.json ``beside`` it says how text is divided, if its tokens are those of the file. Differs: transformers
    reads a byte-level vocabulary whose pre-tokenizer it does not know as GPT-2's, so that a model would read other
    tokens than it was trained on.

    Raises UnsupportedModelError for such a one, and for a tokenizer.json of another vocabulary.
    """
    architecture, vocabulary, settings = get_gguf_tokenizer(str(path))
    if beside is not None:
        settings = {
            key: value for key, value in settings.items() if key not in ("add_bos_token", "add_eos_token")
        }
        backend = Tokenizer.from_file(str(beside))
        _check_same(backend, vocabulary["tokens"], beside)
    else:
        backend = _without_foreign(convert_gguf_tokenizer(architecture, vocabulary)[0], vocabulary["tokens"])
        if vocabulary["tokenizer_type"] == BYTE_LEVEL:
            _divide(backend, vocabulary.get("pre_tokenizer_type"), settings)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def _without_foreign(backend: Tokenizer, tokens: list[str]) -> Tokenizer:
    """The tokenizer without the special tokens of its class (<|endoftext|>) that the file's vocabulary does not have:
    their numbers are behind the last that the model embeds.
    """
    written = json.loads(backend.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["id"] < len(tokens)]
    return Tokenizer.from_str(json.dumps(written))


def _divide(backend: Any, name: str | None, settings: dict[str, Any]) -> None:
    """Let a byte-level tokenizer divide text as the pre-tokenizer of this name does."""
    if name in DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name not in (AS_GPT2, *GGUF_PRE_TOKENIZER_SPLITS):
        raise UnsupportedModelError(
            f"divides text by a pre-tokenizer ({'of no name' if name is None else repr(name)}) that is not known here, "
            "and would be read as other tokens than the model was trained on. Put the model's own tokenizer.json "
            "beside the file."
        )
    if name in WHOLE_WORDS:
        backend.model.ignore_merges = True
        settings.setdefault("add_bos_token", settings["bos_token"] is not None)


def _check_same(backend: Tokenizer, tokens: list[str], beside: Path) -> None:
    """Raise UnsupportedModelError where a tokenizer gives one of its tokens another number than the file does."""
    # Tokens that were added to the vocabulary are spelt in more than one way in GGUF files.
    vocabulary = backend.get_vocab(with_added_tokens=False)
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):  # in no order by itself
        if number >= len(tokens) or tokens[number] != token:
            there = repr(tokens[number]) if number < len(tokens) else "none"
            raise UnsupportedModelError(
                f"is of another model than {beside}, which is read as its tokenizer: token {number} is {there} in the "
                f"file and {token!r} there. Move one of them to another directory."
            )
