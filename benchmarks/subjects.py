"""What is measured: models of a given shape with random weights, ragged prompts, and the step around them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cagsr.config import Config
from cagsr.data.splits import build_prompts
from cagsr.evaluation.learnt_heads import read_file, read_heads
from cagsr.models.build import build_policy
from cagsr.models.from_scratch import new_model
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward
from cagsr.rewards.salience import build_salience
from cagsr.training.assembly import build_step
from cagsr.training.step import Step
from cagsr.training.step_metrics import measure
from cagsr.types import Prompt

__all__ = ["Shape", "saved", "segment_count", "step_from", "step_of", "texts", "whole_step"]

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True)
class Shape:
    """A model and one step's work on it: P prompts of up to S tokens, K responses of exactly T tokens each."""

    architecture: str = "llama"
    layers: int = 6
    hidden: int = 256
    heads: int = 4
    vocabulary: int = 8000
    prompts: int = 4
    candidates: int = 8
    prompt_tokens: int = 96
    response_tokens: int = 48

    @property
    def lengths(self) -> list[int]:
        """[P] prompt tokens, from S down to half of it."""
        s, p = self.prompt_tokens, self.prompts
        return [s - round(row * (s - s // 2) / max(p - 1, 1)) for row in range(p)]

    def __str__(self) -> str:
        return (
            f"{self.architecture} shape, {self.layers} layers, hidden {self.hidden}, {self.heads} heads, "
            f"vocabulary {self.vocabulary}"
        )


def segment_count(tokens: int) -> int:
    """Into how many pieces a prompt falls that knockout would take out one by one."""
    return max(1, min(8, tokens // 4))


def texts(shape: Shape, seed: int = 0) -> list[str]:
    """P prompts, ``field : value value ; field : value``: every word and every sign is one token."""
    random = Random(seed)
    ends = int(shape.architecture != "llama")
    made = []
    for length in shape.lengths:
        pieces, rest = segment_count(length), length - ends
        words: list[str] = []
        for piece in range(pieces):
            own = rest * (piece + 1) // pieces - rest * piece // pieces
            segment = [f"word{random.randrange(shape.vocabulary - 5)}" for _ in range(own)]
            if own >= 4:
                segment[1], segment[-1] = ":", ";"
            words += segment
        made.append(" ".join(words))
    return made


def _tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    named = [PAD, EOS, UNKNOWN, ":", ";"]
    words = [*named, *(f"word{number}" for number in range(shape.vocabulary - len(named)))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if shape.architecture != "llama":
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {EOS}", special_tokens=[(EOS, words.index(EOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        return_token_type_ids=False,
        model_input_names=["input_ids", "attention_mask"],
    )


@contextmanager
def saved(shape: Shape) -> Iterator[Path]:
    """A directory that holds the shape's model and tokenizer, and its prompts in prompts.jsonl."""
    tokenizer = _tokenizer(shape)
    torch.manual_seed(0)
    model = new_model(
        shape.architecture,
        tokenizer,
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        context=shape.prompt_tokens + shape.response_tokens,
    )
    with TemporaryDirectory() as name:
        directory = Path(name)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        rows = [json.dumps({"prompt": text}) for text in texts(shape)]
        (directory / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        yield directory


def config_of(shape: Shape, directory: Path, preset: str = "coverage", *settings: str) -> Config:
    """All responses of a step in one forward pass, as TRL has them, and no response that ends early.

    ``settings`` are laid over that.
    """
    return Config.load(
        None,
        [
            f"model.name={directory}",
            f"data.source={directory / 'prompts.jsonl'}",
            f"sampling.candidates={shape.candidates}",
            f"sampling.max_new_tokens={shape.response_tokens}",
            f"sampling.min_new_tokens={shape.response_tokens}",
            f"reward.preset={preset}",
            "algorithm.kl_coefficient=0.05",
            f"train.prompts_per_step={shape.prompts}",
            f"train.micro_batch={shape.prompts * shape.candidates}",
            "train.learning_rate=1e-6",
            *settings,
        ],
    )


def step_of(
    shape: Shape, directory: Path, preset: str = "coverage", as_policy: type[Policy] | None = None
) -> tuple[Step, list[Prompt]]:
    """The step that `cagsr train` would take, and its prompts; ``as_policy``: with a policy of another class."""
    return step_from(config_of(shape, directory, preset), as_policy)


def step_from(
    config: Config, as_policy: type[Policy] | None = None, accelerator: Accelerator | None = None
) -> tuple[Step, list[Prompt]]:
    """The step of a config, with the heads of the file that it names, if any, and its prompts."""
    policy = build_policy(config)
    if as_policy is not None:
        policy = as_policy(policy.model, policy.tokenizer, policy.readable, policy.sharing)
    prompts, _ = build_prompts(config, policy, "train")
    salience = build_salience(config, prompts)
    if config.reward.heads is not None:
        read_heads(policy, read_file(Path(config.reward.heads)), config.reward.heads)
    accelerator = accelerator or Accelerator(cpu=True)
    step = build_step(config, policy, build_reward(config.reward, None), salience, accelerator)
    return step, prompts


def whole_step(step: Step, prompts: list[Prompt], seed: int = 0) -> None:
    """One step as the trainer takes it, what is written down about it included."""
    collected = step.collect(prompts, seed)
    measure(collected, step.world)
    step.update(collected.batches)
