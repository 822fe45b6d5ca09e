"""Training of reward models on preference pairs, by TRL's RewardTrainer."""

import json
import os
import random as python_random
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cagsr.data.preferences import Pair
from cagsr.errors import InputError
from cagsr.models.load import merged
from cagsr.rewards.reward_model import (
    LAYOUT,
    SPLIT,
    RewardModel,
    asked,
    collated,
    encoded,
    frozen,
    load_classifier,
    padding,
)

__all__ = ["OUTCOME", "train_reward_model"]

OUTCOME = "training.json"


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

    A base that is a LoRA adapter is taken merged. The share ``held_out`` of the prompts, with all their pairs, is not
    trained on. ``steps`` overrules ``epochs``. Returns pairs, held_out_pairs, accuracy (on the pairs held out; None
    where there are none), train_accuracy and seconds. Leaves the random number generators as they were.

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
    with _kept(), tempfile.TemporaryDirectory() as scratch:
        whole = merged(base, Path(scratch) / "base")
        torch.manual_seed(seed)
        model, tokenizer, _ = load_classifier(whole, None, num_labels=1)
        if model.config.model_type == "t5":
            setattr(model.config, LAYOUT, SPLIT)
        _train(trl, model, tokenizer, training, epochs, steps, batch_size, learning_rate, seed)
    trained = RewardModel(frozen(model), tokenizer)
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
    """Pairs to train on and held-out pairs, split by prompt; at least one prompt is trained on."""
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
        encoded(model, tokenizer, asked(pair.prompt), text)
        for pair in pairs
        for text in (pair.chosen, pair.rejected)
    ]

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        numbers = [example[key][0] for key in ("chosen_ids", "rejected_ids") for example in examples]
        return collated(model, [rows[number] for number in numbers], move=False)

    with padding(model, rows) as pad, tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # TRL itself sets it by the name that transformers has given up.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        settings = _settings(trl, scratch, epochs, steps, batch_size, learning_rate, seed)
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
        # TRL has written the tokenizer's there, or EOS.
        model.config.get_text_config().pad_token_id = pad
        trainer.train()


def _settings(
    trl: Any,
    scratch: str,
    epochs: float,
    steps: int | None,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Any:
    """TRL's settings of a reward model: quiet, and nothing kept but the model."""
    return trl.RewardConfig(
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


def _accuracy(model: RewardModel, pairs: list[Pair]) -> float | None:
    """Share of pairs whose chosen response scores higher; None for no pairs."""
    if not pairs:
        return None
    prompts = [asked(pair.prompt) for pair in pairs]
    chosen = model.score(prompts, [pair.chosen for pair in pairs])
    rejected = model.score(prompts, [pair.rejected for pair in pairs])
    return float((chosen > rejected).float().mean())


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, outcome: dict[str, Any]
) -> None:
    """Save a reward model atomically, so that one that exists is complete. ``training.json`` holds its outcome."""
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
    """Context manager that restores random generators and precision, both of which TRL sets for the whole process."""
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
        raise InputError("training a reward model needs TRL: pip install 'trl>=1.16,<2'") from error
    return trl
