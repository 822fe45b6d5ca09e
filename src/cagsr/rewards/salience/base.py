"""Base class of saliences, and the evidence that a signal is given."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cagsr.types import Evidence, Observation, Observer, Prompt, Rollout

__all__ = ["ROLES", "Salience", "evidence_of", "tokens_in"]

# The question: what is said before it, and by whom, is no matter that an answer has to cover.
ROLES = ("last-user",)


class Salience(ABC):
    """Base class of saliences: weights of prompt tokens, normalised per prompt."""

    def __call__(self, rollout: Rollout) -> Tensor:
        """[P S] float32 >= 0, 0 at padding, special tokens and template; rows sum to 1 or are all 0."""
        mask_PS = rollout.prompt_mask.cpu()
        weights_PS = torch.zeros(mask_PS.shape, dtype=torch.float64)
        for row, prompt in enumerate(rollout.prompts):
            weights_PS[row, mask_PS[row]] = torch.tensor(self.weigh(prompt), dtype=torch.float64)
        total_P1 = weights_PS.sum(-1, keepdim=True)
        return (weights_PS / total_P1.where(total_P1 > 0, 1)).to(rollout.prompt_mask.device, torch.float32)

    def without_content(self, prompts: Iterable[Prompt]) -> list[int]:
        """The indices of the prompts without any salient token, whose coverage is 0 for every response.

        Weighs every prompt, so that a salience raises its errors about rows of data here, before a run.
        """
        return [prompt.index for prompt in prompts if not any(self.weigh(prompt))]

    def uncovered(self, prompts: Sequence[Prompt]) -> str | None:
        """What to say of the prompts `without_content`; None where there is none."""
        empty = len(self.without_content(prompts))
        if not empty:
            return None
        return (
            f"{empty} of {len(prompts)} prompts ({empty / len(prompts):.0%}) have no content token, so no response can "
            "cover them"
        )

    @abstractmethod
    def weigh(self, prompt: Prompt) -> list[float]:
        """One weight >= 0 for each of ``prompt.ids``, not normalised."""

    def divide(self, prompt: Prompt) -> list[list[int]] | None:
        """The tokens of each piece of the prompt; None where runs of salient tokens are the pieces."""
        return None

    @property
    def contrasts(self) -> Callable[[Prompt], Mapping[int, Sequence[int]]] | None:
        """A prompt's tokens with another value in a piece, by the piece's number (`rewards.contrasts`).

        None where the data set has no values that could be exchanged.
        """
        return None

    def pieces(self, prompts: Sequence[Prompt], prompt_mask: Tensor) -> Tensor | None:
        """[P J S] bool: `divide` for each prompt, all False beyond its last piece; None where it says nothing.

        ``prompt_mask`` [P S] says where the prompts' tokens stand.
        """
        divided = [self.divide(prompt) for prompt in prompts]
        if any(each is None for each in divided):
            return None
        mask_PS = prompt_mask.cpu()
        found_PJS = torch.zeros(
            len(mask_PS), max(1, *(len(each or ()) for each in divided)), mask_PS.shape[1]
        ).bool()
        for row, each in enumerate(divided):
            columns = mask_PS[row].nonzero().squeeze(-1)
            for number, tokens in enumerate(each or ()):
                found_PJS[row, number, columns[tokens]] = True
        return found_PJS.to(prompt_mask.device)


def evidence_of(
    rollout: Rollout,
    observation: Observation,
    salience: Callable[[Rollout], Tensor],
    observer: Observer | None = None,
) -> Evidence:
    """What a signal is given: the rollout, what was observed of it, its salient tokens, its pieces and contrasts."""
    knows = isinstance(salience, Salience)
    pieces_PJS = salience.pieces(rollout.prompts, rollout.prompt_mask) if knows else None
    contrasts = salience.contrasts if knows else None
    return Evidence(rollout, observation, salience(rollout), observer, pieces_PJS, contrasts)


def tokens_in(prompt: Prompt, spans: Sequence[tuple[int, int]]) -> set[int]:
    """The tokens that cover some character of the spans. Empty offsets, of special tokens, cover none."""
    return {
        token
        for token, (start, end) in enumerate(prompt.offsets)
        if start < end and any(start < span_end and span_start < end for span_start, span_end in spans)
    }
