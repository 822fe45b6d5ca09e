"""TRL's GRPOTrainer at its best ordinary settings, one step of its own training loop at a time."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from greenlet import GreenletExit, getcurrent, greenlet
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from benchmarks.subjects import Shape, texts

__all__ = ["SETTINGS", "EagerCoverage", "TrlStep"]

SETTINGS: dict[str, Any] = {
    "beta": 0.05,
    "num_iterations": 1,
    "gradient_accumulation_steps": 1,
    "temperature": 1.0,
    "learning_rate": 1e-6,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "shuffle_dataset": False,
    "log_completions": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""What is set; all else is TRL's default, plain `generate`, its fused head and its fused AdamW among them."""


class EagerCoverage:
    """A reward as a user of TRL would write it: coverage from an eager pass of the frozen reference.

    The cheapest such pass: all responses at once, no language-model head, and coverage alone of the preset's terms.
    """

    __name__ = "coverage"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer
        words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.is_content = torch.tensor([word.isalnum() for word in words])

    @torch.no_grad()
    def __call__(self, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        prompt = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        width = prompt["input_ids"].shape[1]
        response = torch.tensor(completion_ids)
        mask = torch.cat([prompt["attention_mask"], torch.ones_like(response)], 1)
        output = self.model.base_model(
            input_ids=torch.cat([prompt["input_ids"], response], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            output_attentions=True,
        )
        by_layer = [layer[:, :, width - 1 : -1, :width].mean(1) for layer in output.attentions]
        looked = torch.stack(by_layer).mean(0).amax(1)
        weights = self.is_content[prompt["input_ids"]].float()
        return ((looked * weights).sum(-1) / weights.sum(-1)).tolist()


class _Pause(TrainerCallback):
    """Gives control back to whoever asked for a step, before the next one begins."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        asker = getcurrent().parent
        assert asker is not None, "train() runs in a greenlet of TrlStep"
        asker.switch()


class TrlStep:
    """`trainer.train()`, stopped before each of its steps; a call lets it take one.

    Generation, reference and reward, loss, backward pass, clipping, optimizer: the loop is TRL's own, untouched.
    ``reward`` and ``compact`` can be changed between two calls. Compact, its head computes the responses' positions
    only, as it does on a GPU; on a CPU, TRL computes those of the prompts too, and no setting of it says otherwise.
    ``prompts`` are texts or lists of messages, the shape's own by default; ``adapter`` is a PEFT config to train with.
    """

    def __init__(
        self,
        shape: Shape,
        directory: Path,
        reward: Callable[..., list[float]],
        *,
        prompts: Sequence[Any] | None = None,
        adapter: Any = None,
        output: Path | None = None,
        **settings: Any,
    ):
        from trl import GRPOConfig, GRPOTrainer

        self.reward, self.compact = reward, False
        given = SETTINGS | settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer = GRPOTrainer(
                AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa"),
                self._ask,
                GRPOConfig(
                    output_dir=str(output or directory / "trl"),
                    per_device_train_batch_size=shape.prompts * shape.candidates,
                    num_generations=shape.candidates,
                    max_completion_length=shape.response_tokens,
                    generation_kwargs={"min_new_tokens": shape.response_tokens},
                    max_steps=1_000_000,
                    **given,
                ),
                Dataset.from_dict({"prompt": list(prompts or texts(shape))}),
                processing_class=AutoTokenizer.from_pretrained(directory),
                callbacks=[_Pause()],
                peft_config=adapter,
            )
        self._loop = greenlet(self.trainer.train)
        self._loop.switch()

    def _ask(self, **given: Any) -> list[float]:
        return self.reward(**given)

    def __call__(self) -> None:
        with patch("trl.trainer.utils._use_triton", lambda _: True) if self.compact else nullcontext():
            self._loop.switch()

    def end(self) -> None:
        self._loop.throw(GreenletExit)
