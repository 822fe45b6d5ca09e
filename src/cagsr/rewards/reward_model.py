"""Reward models: sequence classifiers, trained on pairs, that score responses; one format on disk for all.

`cagsr.training.reward_model` trains them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cagsr.attention.positions import longest_text
from cagsr.data.chat_template import answered, render
from cagsr.data.make_prompt import text_ids
from cagsr.data.special_tokens import tokenised
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.io.adapters import adapter_at
from cagsr.io.safetensors_only import only_safetensors, reason
from cagsr.types import Prompt

__all__ = [
    "Asked",
    "Conversation",
    "RewardModel",
    "asked",
    "collated",
    "encoded",
    "frozen",
    "load_classifier",
    "padding",
]


class Conversation(NamedTuple):
    """The messages of a conversation, and what its chat template is given: tools and variables."""

    messages: list[Mapping[str, Any]]
    template: Mapping[str, Any]


Asked = str | list[Mapping[str, Any]] | Conversation
"""A reward model's prompt: a text, or a conversation."""

Encoded = Mapping[str, list[int]]

# Marks the config of a T5 that this package trained: its encoder reads the prompt and its decoder the response, as
# when it generates.
LAYOUT, SPLIT = "cagsr_layout", "prompt in the encoder, response in the decoder"
MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def asked(prompt: Prompt) -> Asked:
    """The prompt as a reward model reads it: the user's conversation, or the text as the policy read it."""
    messages = prompt.row.get("prompt")
    return Conversation(messages, prompt.template) if isinstance(messages, list) else prompt.text


@dataclass(frozen=True)
class RewardModel:
    """A reward model: a frozen sequence classifier with one output.

    How prompt and response become tokens: a causal model with a chat template reads them as a conversation, another
    causal model one after the other, ended by EOS; encoders (BERT and its kin) as a pair; encoder-decoders one
    after the other, each ended by EOS, and a T5 of this package as `LAYOUT` says.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> "RewardModel":
        """A reward model from a directory or the hub; safetensors only, and no code of theirs runs.

        Raises InputError for a path that leads nowhere, weights that do not fit, or another number of outputs.
        """
        model, tokenizer, missing = load_classifier(path, revision)
        if missing:
            raise InputError(
                f"{path} is no reward model: its checkpoint has no weights for {', '.join(missing)}. Train one with "
                "preference pairs (cagsr.training.reward_model.train_reward_model), or name one that was."
            )
        if model.config.num_labels != 1:
            raise InputError(
                f"{path} has {model.config.num_labels} outputs and a reward model has one; it classifies something "
                "else. Name a sequence classifier with num_labels 1."
            )
        frozen(model)
        return cls(model, tokenizer)

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Asked],
        responses: Sequence[str],
        rows_per_pass: int = 64,
        finished: Sequence[bool] | None = None,
    ) -> Tensor:
        """[n] float32, higher is better, in (-inf, inf): the n-th response to the n-th prompt.

        ``finished`` is False for one that was cut off, as of `encoded`; None: all ended by themselves.

        Raises InputError for a text that is longer than the model has positions for.
        """
        ended = [True] * len(responses) if finished is None else finished
        rows = [
            encoded(self.model, self.tokenizer, prompt, response, whole)
            for prompt, response, whole in zip(prompts, responses, ended, strict=True)
        ]
        scores = [torch.empty(0, device=self.model.device)]
        for start in range(0, len(rows), rows_per_pass):
            part = rows[start : start + rows_per_pass]
            with padding(self.model, part):
                scores.append(self.model(**collated(self.model, part)).logits.squeeze(-1).float())
        return torch.cat(scores)

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)  # pyright: ignore[reportArgumentType]


# Tokens ----------------------------------------------------------------------------------------------------------


def encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Asked,
    response: str,
    finished: bool = True,
) -> Encoded:
    """Token ids of a response to a prompt, by the name of the model's input; as `RewardModel` says.

    To a causal model one that is not ``finished`` has no end, unless it is empty; others read ends as separators.

    Raises InputError for more of them than the model has positions for.
    """
    conversational = not model.config.is_encoder_decoder and bool(tokenizer.chat_template)
    if isinstance(prompt, str):
        turns, template = [{"role": "user", "content": prompt}], {}
    else:
        turns, template = prompt if isinstance(prompt, Conversation) else (prompt, {})
    if conversational:
        closed = finished or not response
        row = {"input_ids": _ids_of_turns(tokenizer, answered(turns, response), template, closed)}
    else:
        asked_for = "\n".join(str(turn["content"]) for turn in turns)
        row = _encoded_texts(model, tokenizer, asked_for, response, finished)
    limit = longest_text(model, model.config.get_text_config())
    longest = max(map(len, row.values()))
    if limit is not None and longest > limit:
        raise InputError(
            f"prompt and response are {longest} tokens, and the reward model has positions for {limit}. Lower "
            "data.max_prompt_tokens or sampling.max_new_tokens, or choose another reward model."
        )
    return row


def _encoded_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, finished: bool
) -> Encoded:
    written = text_ids(response, tokenizer, special=False)
    if getattr(model.config, LAYOUT, None) == SPLIT:
        start = model.config.decoder_start_token_id
        return {"input_ids": text_ids(prompt, tokenizer), "decoder_input_ids": [start, *written]}
    if not model.config.is_encoder_decoder and tokenizer.cls_token_id is not None:
        pair: Any = tokenizer(prompt, response, split_special_tokens=True, verbose=False)
        return {key: list(pair[key]) for key in ("input_ids", "token_type_ids") if key in pair}
    asked_for = text_ids(prompt, tokenizer, goes_on=not model.config.is_encoder_decoder)
    # An encoder-decoder is read at the last of them, and takes as many of each row.
    ended = finished or not written or model.config.is_encoder_decoder
    return {"input_ids": [*asked_for, *written, *([cast(int, tokenizer.eos_token_id)] if ended else [])]}


@contextmanager
def padding(model: PreTrainedModel, rows: Sequence[Encoded]) -> Iterator[int]:
    """Context manager: the token that the ``rows`` are padded with, which is in the model's config meanwhile.

    transformers scores a causal row at its last token that is not this one. A model without a padding token gets one
    that ends none of the rows, so that it scores at the last token of each, as it does of one row without padding.
    EOS would not do: the score would be that of the token before it. Raises InputError where every token ends a row.
    """
    config = model.config.get_text_config()
    own = getattr(config, "pad_token_id", None)
    if own is None or own < 0:  # -1 is no token either: the first Llamas have it
        last = {ids[-1] for row in rows for ids in row.values()}
        config.pad_token_id = next((token for token in range(config.vocab_size) if token not in last), None)
    if config.pad_token_id is None:
        raise InputError("the reward model has no padding token; set pad_token_id in its config.json")
    try:
        yield config.pad_token_id
    finally:
        config.pad_token_id = own


def _ids_of_turns(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    template: Mapping[str, Any],
    closed: bool,
) -> list[int]:
    how = {"add_generation_prompt": False, "continue_final_message": not closed}
    try:
        text, turns = render(messages, tokenizer, **{**template, **how})
        return list(tokenised(text, turns, tokenizer, add_special_tokens=False).ids)
    except ValueError as error:
        raise InputError(f"reward model: {error}; choose another, or leave the row out") from error


def collated(model: PreTrainedModel, rows: Sequence[Encoded], move: bool = True) -> dict[str, Tensor]:
    """Pad rows of token ids to a batch with masks, by the model's padding token (see `padding`).

    A T5 that reads two texts is padded on the left of both: transformers takes the state of the decoder in the column
    where the encoder's text ends, and T5 knows distances only.
    """
    width = max(len(ids) for row in rows for ids in row.values())
    left = "decoder_input_ids" in rows[0]
    batch = {}
    for key in rows[0]:
        padding = 0 if key == "token_type_ids" else model.config.get_text_config().pad_token_id
        ids = torch.full((len(rows), width), padding)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for n, row in enumerate(rows):
            used = slice(width - len(row[key]), width) if left else slice(len(row[key]))
            ids[n, used], mask[n, used] = torch.tensor(row[key]), 1
        batch[key] = ids
        if key in MASKS:
            batch[MASKS[key]] = mask
    return {key: value.to(model.device) for key, value in batch.items()} if move else batch


# Files -----------------------------------------------------------------------------------------------------------


def load_classifier(
    name: str, revision: str | None, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Load a classifier and its tokenizer; also the names of the head's weights that the checkpoint lacks."""
    where = {"revision": revision, "trust_remote_code": False}
    if adapter_at(name, revision) is not None:
        raise InputError(
            f"{name} is a LoRA adapter, and a reward model is read from whole weights. Save it merged: "
            "merge_and_unload() of the PEFT model, then save_pretrained()."
        )
    try:
        config = AutoConfig.from_pretrained(name, **where, **settings)
        only_safetensors(name, config, revision)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **where,
        )
    except Exception as error:  # libraries raise errors of any class for broken files
        kind = UnsupportedModelError if "Unrecognized configuration class" in str(error) else InputError
        raise kind(
            f"{name} does not load as a sequence classifier from safetensors: {reason(error)}"
        ) from error
    body = f"{model.base_model_prefix}."
    head = sorted(key for key in found["missing_keys"] if not key.startswith(body))
    wrong = sorted([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])])
    wrong = [key for key in wrong if key.startswith(body)]
    if wrong:
        raise InputError(
            f"{name}: {len(wrong)} weights that config.json asks for are missing or of another shape in the "
            f"checkpoint (first: {wrong[0]}). Name a model whose config and weights belong together."
        )
    return model, tokenizer, head


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)
