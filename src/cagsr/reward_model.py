"""Reward models: a number for a response, learnt from pairs. The same thing on disk whoever judged the pairs."""

import json
import os
import random as python_random
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cagsr.artifacts import only_safetensors, reason
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.identity import identity
from cagsr.preferences import Pair
from cagsr.types import Prompt

__all__ = ["Asked", "RewardModel", "asked", "train_reward_model"]

Asked = str | list[Mapping[str, Any]]
"""What was asked: a text, or the messages of a conversation."""

Encoded = Mapping[str, list[int]]

# In the config of a T5 that we made: its encoder reads the prompt and its decoder the response, as when it writes.
LAYOUT, SPLIT = "cagsr_layout", "prompt in the encoder, response in the decoder"
OUTCOME = "training.json"
MASKS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}


def asked(prompt: Prompt) -> Asked:
    """What a reward model is told was asked: the user's conversation, or the text as the policy read it."""
    messages = prompt.row.get("prompt")
    return messages if isinstance(messages, list) else prompt.text


@dataclass(frozen=True)
class RewardModel:
    """A sequence classifier with one output, frozen; ``describe`` says which.

    How prompt and response become tokens: a causal model with a chat template reads them as a conversation, another
    causal model one after the other, ended by EOS; encoders (BERT and its kin) as a pair; encoder-decoders one
    after the other, each ended by EOS, and a T5 of ours as `LAYOUT` says.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> "RewardModel":
        """A reward model from a directory or the hub; safetensors only, and no code of theirs runs.

        Raises InputError for a path that leads nowhere, weights that do not fit, or another number of outputs.
        """
        model, tokenizer, missing = _loaded(path, revision)
        if missing:
            raise InputError(
                f"{path} is no reward model: its checkpoint has no weights for {', '.join(missing)}. Train one with "
                "preference pairs (cagsr.reward_model.train_reward_model), or name one that was."
            )
        if model.config.num_labels != 1:
            raise InputError(
                f"{path} has {model.config.num_labels} outputs and a reward model has one; it classifies something "
                "else. Name a sequence classifier with num_labels 1."
            )
        _frozen(model)
        return cls(model, tokenizer, path, revision)

    @torch.no_grad()
    def score(self, prompts: Sequence[Asked], responses: Sequence[str], rows_per_pass: int = 64) -> Tensor:
        """[n] float32, higher is better, in (-inf, inf): the n-th response to the n-th prompt.

        Raises InputError for a text that is longer than the model has positions for.
        """
        rows = [
            _encoded(self.model, self.tokenizer, prompt, response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores = [
            self.model(**_collated(self.model, rows[start : start + rows_per_pass]))
            .logits.squeeze(-1)
            .float()
            for start in range(0, len(rows), rows_per_pass)
        ]
        return torch.cat(scores) if scores else torch.empty(0)

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)  # pyright: ignore[reportArgumentType]

    def describe(self) -> dict[str, str | None]:
        """``name`` and ``revision`` of a hub model, ``name`` and ``sha256`` of a directory's weights."""
        return identity(self.name, self.revision, getattr(self.model.config, "_commit_hash", None))


def train_reward_model(
    base: str,
    pairs: Sequence[Pair],
    directory: str | Path,
    *,
    epochs: float = 3.0,
    steps: int | None = None,
    batch_size: int = 16,
    learning_rate: float = 2e-4,
    held_out: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Train a reward model of ``base`` on pairs with TRL's RewardTrainer and save it in ``directory``.

    The share ``held_out`` of the prompts, with all their pairs, is not trained on. ``steps`` overrules ``epochs``.
    Returns pairs, held_out_pairs, accuracy (on the pairs held out; None where there are none), train_accuracy and
    seconds. Leaves the random number generators as they were.

    Raises InputError when TRL is not installed, for no pairs, and as `RewardModel.load` does.

    Source: Bradley-Terry, ``-log sigmoid(r(chosen) - r(rejected))``, as in arXiv 2203.02155.
    Differs: a T5 reads the prompt in its encoder and the response in its decoder, so that what it knows of
    writing serves it; transformers' own T5 classifier reads one text in both.
    """
    trl = _trl()
    if not pairs:
        raise InputError("a reward model needs preference pairs, and there are none")
    started = time.perf_counter()
    training, kept = _parted(pairs, held_out, seed)
    with _kept():
        torch.manual_seed(seed)
        model, tokenizer, _ = _loaded(base, None, num_labels=1)
        if model.config.model_type == "t5":
            setattr(model.config, LAYOUT, SPLIT)
        _train(trl, model, tokenizer, training, epochs, steps, batch_size, learning_rate, seed)
    trained = RewardModel(_frozen(model), tokenizer, str(directory))
    outcome = {
        "pairs": len(pairs),
        "held_out_pairs": len(kept),
        "accuracy": _accuracy(trained, kept),
        "train_accuracy": _accuracy(trained, training),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _save(model, tokenizer, Path(directory), outcome)
    return outcome


def _parted(pairs: Sequence[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and pairs held out, by prompt; at least one prompt is trained on."""
    texts = list(dict.fromkeys(pair.prompt.text for pair in pairs))
    Random(f"reward model {seed}").shuffle(texts)
    away = set(texts[: min(round(held_out * len(texts)), len(texts) - 1)])
    return [p for p in pairs if p.prompt.text not in away], [p for p in pairs if p.prompt.text in away]


def _train(
    trl: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    epochs: float,
    steps: int | None,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    from datasets import Dataset
    from transformers import PrinterCallback

    rows = [
        _encoded(model, tokenizer, asked(pair.prompt), text)
        for pair in pairs
        for text in (pair.chosen, pair.rejected)
    ]

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        numbers = [example[key][0] for key in ("chosen_ids", "rejected_ids") for example in examples]
        return _collated(model, [rows[number] for number in numbers], move=False)

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # TRL itself sets it by the name that transformers has given up.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        settings = trl.RewardConfig(
            output_dir=scratch,
            num_train_epochs=epochs,
            max_steps=-1 if steps is None else steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="linear",
            max_length=None,
            seed=seed,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.RewardTrainer(
            model=model,
            args=settings,
            # The collator has the tokens; a row of the data set only names the two of a pair.
            data_collator=collate,
            train_dataset=Dataset.from_dict(
                {
                    "chosen_ids": [[2 * number] for number in range(len(pairs))],
                    "rejected_ids": [[2 * number + 1] for number in range(len(pairs))],
                }
            ),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _accuracy(model: RewardModel, pairs: list[Pair]) -> float | None:
    """Share of pairs whose chosen response scores higher; None for no pairs."""
    if not pairs:
        return None
    prompts = [asked(pair.prompt) for pair in pairs]
    chosen = model.score(prompts, [pair.chosen for pair in pairs])
    rejected = model.score(prompts, [pair.rejected for pair in pairs])
    return float((chosen > rejected).float().mean())


# Tokens ----------------------------------------------------------------------------------------------------------


def _encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Asked, response: str
) -> Encoded:
    conversational = not model.config.is_encoder_decoder and bool(tokenizer.chat_template)
    if conversational:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        said = [*map(dict, turns), {"role": "assistant", "content": response}]
        text = str(tokenizer.apply_chat_template(said, tokenize=False))
        row = {"input_ids": _ids(tokenizer, text, special=False)}
    else:
        asked_for = prompt if isinstance(prompt, str) else "\n".join(str(turn["content"]) for turn in prompt)
        row = _encoded_texts(model, tokenizer, asked_for, response)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, row.values()))
    if limit is not None and longest > limit:
        raise InputError(
            f"prompt and response are {longest} tokens, and the reward model has positions for {limit}. Lower "
            "data.max_prompt_tokens or sampling.max_new_tokens, or choose another reward model."
        )
    return row


def _encoded_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, response: str
) -> Encoded:
    written = _ids(tokenizer, response, special=False)
    if getattr(model.config, LAYOUT, None) == SPLIT:
        start = model.config.decoder_start_token_id
        return {"input_ids": _ids(tokenizer, prompt), "decoder_input_ids": [start, *written]}
    if not model.config.is_encoder_decoder and tokenizer.cls_token_id is not None:
        pair: Any = tokenizer(prompt, response, verbose=False)
        return {key: list(pair[key]) for key in ("input_ids", "token_type_ids") if key in pair}
    return {"input_ids": [*_ids(tokenizer, prompt), *written, cast(int, tokenizer.eos_token_id)]}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _collated(model: PreTrainedModel, rows: Sequence[Encoded], move: bool = True) -> dict[str, Tensor]:
    """Padded, with masks. A T5 that reads two texts is padded on the left of both: transformers takes the state of
    the decoder in the column where the encoder's text ends, and T5 knows distances only.
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


def _loaded(
    name: str, revision: str | None, **settings: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """The classifier, its tokenizer, and the names of the weights of its head that the checkpoint lacks."""
    where = {"revision": revision, "trust_remote_code": False}
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
    except Exception as error:  # what is in the files, libraries tell in errors of any kind
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
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    text = model.config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, head


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().requires_grad_(False)


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, outcome: dict[str, Any]
) -> None:
    """Whole or not at all: a reward model that is there can be used again. ``training.json`` is its outcome."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    (staging / OUTCOME).write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
    if directory.exists():
        shutil.rmtree(directory)
    staging.rename(directory)


@contextmanager
def _kept() -> Iterator[None]:
    """TRL seeds every generator there is and sets the process's precision; what comes after must not depend on it."""
    python, numpy_state = python_random.getstate(), np.random.get_state()
    states = [(state, dict(state._shared_state)) for state in (AcceleratorState, PartialState)]
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    try:
        AcceleratorState._reset_state(reset_partial_state=True)
        with torch.random.fork_rng():
            yield
    finally:
        python_random.setstate(python)
        np.random.set_state(numpy_state)
        for state, shared in states:
            state._shared_state.clear()
            state._shared_state.update(shared)
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        if precision is not None:
            os.environ["ACCELERATE_MIXED_PRECISION"] = precision


def _trl() -> Any:
    try:
        import trl
    except ImportError as error:
        raise InputError("training a reward model needs TRL: pip install 'cagsr[preferences]'") from error
    return trl
