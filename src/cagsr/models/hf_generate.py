"""Sampling by transformers' ``generate``, for models whose responses cannot share their prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from cagsr.config.schema import Sampling
from cagsr.models.generation_rules import GenerationRules
from cagsr.models.sampling import InverseTransform

__all__ = ["generate"]


def generate(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    begun: dict[str, Tensor],
    sampling: Sampling,
    uniform_NT: Tensor | None,
    eos_ids: list[int],
    pad_id: int,
    rules: GenerationRules,
    logits: list[Tensor] | None = None,
) -> Tensor:
    """Sample [N T] response tokens, each of the prompts [P S] computed once for each of its candidates.

    ``begun`` is what an encoder-decoder's responses begin with; ``uniform_NT`` and ``rules`` as of
    `models.decoding.decode`. To ``logits`` those of all steps are appended, [N T V].
    """
    k, steps = sampling.candidates, _Steps()
    given = begun.get("decoder_input_ids", prompt_ids).shape[1]
    processors = LogitsProcessorList([Forbidding(rules, given)])
    if logits is not None:
        processors.append(steps)
    processors.append(Drawable(rules))
    if uniform_NT is not None:
        processors.append(InverseTransform(sampling, uniform_NT))
    with _settings(model, sampling, eos_ids, pad_id) as config:
        generated = cast(Any, model).generate(
            input_ids=prompt_ids.repeat_interleave(k, 0),
            attention_mask=prompt_mask.repeat_interleave(k, 0).long(),
            generation_config=config,
            logits_processor=processors,
            # Weights in shards are there (`distributed.fsdp.gathered`), also where another process writes fewer tokens.
            synced_gpus=False,
            **begun,
        )
    if logits is not None:
        logits.append(torch.stack(steps.logits, 1))
    response_ids = generated[:, given:]
    return response_ids if response_ids.shape[1] else response_ids.new_full((len(generated), 1), pad_id)


class Forbidding(LogitsProcessor):
    """Logits processor that leaves out what ``rules`` forbid, after ``given`` tokens that are no response."""

    def __init__(self, rules: GenerationRules, given: int):
        self.rules, self.given = rules, given

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        return self.rules.masked(scores, slice(None if input_ids.shape[1] == self.given else 0))


class Drawable(LogitsProcessor):
    """Logits processor that leaves out what ``rules`` have as undrawn."""

    def __init__(self, rules: GenerationRules):
        self.rules = rules

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        return self.rules.drawable(scores)


class _Steps(LogitsProcessor):
    """Logits processor that changes nothing and keeps what it is given, [N V] a step."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        self.logits.append(scores)
        return scores


@contextmanager
def _settings(
    model: PreTrainedModel, sampling: Sampling, eos_ids: list[int], pad_id: int
) -> Iterator[GenerationConfig]:
    """Context manager that replaces the model's generation config by the settings of one ``generate`` call.

    What a given config leaves open ``generate`` takes from the model's own, which may hold beams, penalties or forced
    tokens: responses would then be drawn from another distribution than the one that is scored.
    """
    model = getattr(model, "get_base_model", lambda: model)()
    own = model.generation_config
    config = model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens or None,
        eos_token_id=eos_ids,
        pad_token_id=pad_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )
    try:
        yield config
    finally:
        model.generation_config = own
