"""Evidence made by hand: what tests of signals, salience and reward stand on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cagsr.types import EVERYTHING, Evidence, Observation, Prompt, Rollout, Turn, Wanted

PAD = 0
EOS = 1


def make_prompt(
    text: str, *, index: int = 0, row: Mapping[str, Any] | None = None, content: Sequence[Any] | None = None
) -> Prompt:
    """One token per word or punctuation mark, and an end-of-sequence token without text at the end."""
    spans = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
    vocabulary = {piece: 10 + number for number, piece in enumerate(sorted({text[a:b] for a, b in spans}))}
    return Prompt(
        text=text,
        ids=(*(vocabulary[text[a:b]] for a, b in spans), EOS),
        offsets=(*spans, (0, 0)),
        turns=tuple(Turn("user", *span) for span in (content if content is not None else [(0, len(text))])),
        index=index,
        row=row or {},
    )


class Asked:
    """An observer whose log-probability of a token depends on the prompt tokens that are there, and on nothing else."""

    def observe(self, rollout: Rollout, wanted: Wanted = EVERYTHING) -> Observation:
        raise NotImplementedError

    def logprobs(self, rollout: Rollout) -> Tensor:
        there_P1 = (rollout.prompt_ids * rollout.prompt_mask).sum(-1, keepdim=True)
        there_N1 = there_P1.repeat_interleave(rollout.group_size, 0)
        return -((3 * rollout.response_ids + there_N1) % 13).float() / 3 * rollout.response_mask


def make_evidence(
    attention: Any,
    *,
    salience: Any = None,
    group_size: int | None = None,
    response_ids: Any = None,
    lengths: Sequence[int] | None = None,
    finished: Sequence[bool] | None = None,
    responses: Sequence[str] | None = None,
    prompts: Sequence[Prompt] | None = None,
    prompt_ids: Any = None,
    prompt_mask: Any = None,
    **observed: Any,
) -> Evidence:
    """Evidence around an attention [N T S]; what is not given is neutral.

    By default: one group, every response of full length T without an end-of-sequence token, distinct ids,
    uniform salience, log-probability 0 and confidence 1.
    """
    attention = torch.as_tensor(attention, dtype=torch.float32)
    N, T, S = attention.shape
    P = N // (group_size or N)
    mask_PS = torch.ones(P, S, dtype=torch.bool) if prompt_mask is None else torch.as_tensor(prompt_mask)
    mask_NT = torch.arange(T) < torch.tensor(lengths or [T] * N).unsqueeze(-1)
    ids_PS = 100 + torch.arange(P * S).view(P, S) if prompt_ids is None else torch.as_tensor(prompt_ids)
    ids_NT = 500 + torch.arange(N * T).view(N, T) if response_ids is None else torch.as_tensor(response_ids)
    if salience is None:
        salience = mask_PS / mask_PS.sum(-1, keepdim=True)
    ones = torch.ones(N, T)
    neutral = {"logprobs": 0 * ones, "confidence": ones, "entropy": 0 * ones, "certainty": 0 * ones}
    given = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in observed.items()}
    observation = {"prompt_logprobs": torch.zeros(N, T, S), **neutral, **given}
    seen = mask_NT.unsqueeze(-1) & mask_PS.repeat_interleave(N // P, 0).unsqueeze(1)
    return Evidence(
        rollout=Rollout(
            prompts=list(prompts or [make_prompt(f"prompt {number}", index=number) for number in range(P)]),
            prompt_ids=ids_PS,
            prompt_mask=mask_PS,
            response_ids=ids_NT,
            response_mask=mask_NT,
            finished=torch.tensor(finished or [False] * N),
            responses=list(responses or [f"response {number}" for number in range(N)]),
        ),
        observation=Observation(
            on_prompt={
                "attention": attention * seen,
                "prompt_logprobs": observation.pop("prompt_logprobs") * seen,
            },
            **{key: value * mask_NT for key, value in observation.items()},
        ),
        salience=torch.as_tensor(salience, dtype=torch.float32),
        observer=Asked(),
        # The prompt with another first token.
        contrasts=lambda prompt: {0: (7, *ids_PS[prompt.index][mask_PS[prompt.index]].tolist()[1:])},
    )


def padded(evidence: Evidence, *, left: int = 0, right: int = 0, response: int = 0) -> Evidence:
    """The same evidence with more padding: prompt columns on either side, response columns on the right.

    Padding ids repeat real ones, as they do where the padding token is the end-of-sequence token.
    """

    def prompt_axis(tensor: Tensor, value: Any = 0) -> Tensor:
        return pad(tensor, (left, right), value=value)

    def response_axis(tensor: Tensor, value: Any = 0) -> Tensor:
        return pad(tensor, (0, response), value=value)

    def both(tensor: Tensor) -> Tensor:
        return pad(tensor, (left, right, 0, response))

    rollout, observation = evidence.rollout, evidence.observation
    return Evidence(
        rollout=replace(
            rollout,
            prompt_ids=prompt_axis(rollout.prompt_ids, int(rollout.response_ids[0, 0])),
            prompt_mask=prompt_axis(rollout.prompt_mask, False),
            response_ids=response_axis(rollout.response_ids, int(rollout.prompt_ids[0, 0])),
            response_mask=response_axis(rollout.response_mask, False),
        ),
        observation=Observation(
            on_prompt={name: both(value) for name, value in observation.on_prompt.items()},
            logprobs=response_axis(observation.logprobs),
            confidence=response_axis(observation.confidence),
            entropy=response_axis(observation.entropy),
            certainty=response_axis(observation.certainty),
        ),
        salience=prompt_axis(evidence.salience),
        observer=evidence.observer,
        contrasts=evidence.contrasts,
    )


def random_evidence(seed: int = 0, *, prompts: int = 3, group_size: int = 5) -> Evidence:
    """Ragged evidence with T = 7 and S = 11, padded prompts, an empty response and a lone end-of-sequence."""
    generator = torch.Generator().manual_seed(seed)
    P, N, T, S = prompts, prompts * group_size, 7, 11

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    sizes = torch.randint(3, S + 1, (P,), generator=generator)
    prompt_mask = torch.arange(S) >= (S - sizes).unsqueeze(-1)
    lengths = torch.randint(2, T + 1, (N,), generator=generator)
    lengths[:2] = torch.tensor([0, 1])
    finished = uniform(N) < 0.5
    finished[:2] = torch.tensor([False, True])
    salience = uniform(P, S) * prompt_mask * (uniform(P, S) < 0.7)
    salience[:, -1] = 1.0
    texts = [" ".join(f"w{word}" for word in range(size - 1)) for size in sizes.tolist()]
    return make_evidence(
        torch.softmax(3 * uniform(N, T, S), -1),
        salience=salience / salience.sum(-1, keepdim=True),
        group_size=group_size,
        response_ids=torch.randint(10, 12, (N, T), generator=generator),
        lengths=lengths.tolist(),
        finished=finished.tolist(),
        responses=["", "", *(f"w{row} w{row + 1}, other" + " cheap" * (row % 3) for row in range(2, N))],
        prompts=[
            make_prompt(text, index=index, row={"reference": f"w3 {text} other"})
            for index, text in enumerate(texts)
        ],
        prompt_ids=torch.randint(10, 13, (P, S), generator=generator),
        prompt_mask=prompt_mask,
        logprobs=-5 * uniform(N, T),
        confidence=uniform(N, T).clamp(min=0.01),
        entropy=uniform(N, T),
        certainty=3 * uniform(N, T),
        prompt_logprobs=-4 * uniform(N, T, S),
    )
