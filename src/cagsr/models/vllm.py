"""Sampling on a vLLM server that has the policy's weights; they are sent to it before each rollout.

Token ids and settings go over HTTP. How weights go there is a client's affair: a LoRA adapter as files that the server
loads (`models.vllm_adapters`), all weights from GPU to GPU (`models.vllm_weights`). This module decides when that
happens and checks the answers.

Weights are sent at the beginning of every rollout. So they are never behind an update, and a run that goes on, or a
server that was started anew, needs nothing else.

Causal models only. An adapter in shards is gathered for it; all other weights must be whole in every process.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from cagsr.config.schema import Sampling
from cagsr.distributed.fsdp import whole_weights
from cagsr.distributed.process_group import World
from cagsr.errors import InputError
from cagsr.io.shutdown import waiting
from cagsr.models.policy import Policy
from cagsr.models.sampling import response_mask
from cagsr.models.vllm_server import Client, Trained, asking
from cagsr.types import Prompt, Rollout

__all__ = ["VLLMSampler", "refuse_longer", "written"]


class Written(NamedTuple):
    """One response of the server: its tokens, and the log-probability of each under the sampling distribution."""

    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class VLLMSampler:
    """A `models.sampling.Sampler` on a vLLM server. ``client`` is the first process's, which asks for all.

    Raises InputError where the model's generation config forbids tokens, or its weights cannot be sent.
    """

    policy: Policy
    client: Client | None
    world: World
    held_to_policy: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.policy.rules.never or self.policy.rules.not_first:
            raise InputError(
                "sampling.engine: the model's generation_config.json forbids tokens (bad_words_ids, suppress_tokens or "
                "begin_suppress_tokens), which vLLM is not told of; set sampling.engine to policy, or name them in "
                "sampling.ignore_generation_config"
            )
        self.world.by_main(lambda: self.client and self.client.check(self.policy.model))

    def sample(self, prompts: list[Prompt], sampling: Sampling, seed: int = 0) -> Rollout:
        """Sample K candidates per prompt with the policy's current weights, and the server's log-probabilities of them.

        ``seed`` is not used: the server has its own randomness. Raises EndpointError in all processes where the
        server does not answer, or not as it should.
        """
        asked = self.world.joined([list(prompt.ids) for prompt in prompts])
        weights = whole_weights(self.policy.model, self.world.rank == 0, trained_only=True)
        drawn = self.world.share(self.world.by_main(partial(self._ask, asked, sampling, weights)))
        prompt_ids, prompt_mask = self.policy.collate(prompts)
        width = max(len(one.ids) for one in drawn)
        response_ids = torch.full((len(drawn), width), self.policy.pad_id)
        sampled = torch.zeros(len(drawn), width)
        for row, (ids, logprobs) in enumerate(drawn):
            response_ids[row, : len(ids)] = torch.tensor(ids)
            sampled[row, : len(ids)] = torch.tensor(logprobs)
        response_ids, sampled = response_ids.to(prompt_ids.device), sampled.to(prompt_ids.device)
        mask, finished = response_mask(response_ids, self.policy.eos_ids)
        response_ids = response_ids.masked_fill(~mask, self.policy.pad_id)
        return Rollout(
            prompts=prompts,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            response_ids=response_ids,
            response_mask=mask,
            finished=finished,
            responses=self.policy.decode(response_ids, mask),
            sampled_logprobs=sampled.masked_fill(~mask, 0.0),
        )

    def _ask(self, asked: list[list[int]], sampling: Sampling, weights: Trained) -> list[Written]:
        assert self.client is not None, "the first process has the client"
        # Among several processes the others wait for the answer, and nobody can leave.
        with (
            asking(self.client.base_url, self.client.start),
            waiting() if self.world.size == 1 else nullcontext(),
        ):
            answer = self.client.answer(self.policy.model, asked, sampling, self.policy.eos_ids, weights)
            vocabulary = cast(nn.Embedding, self.policy.model.get_input_embeddings()).num_embeddings
            return written(answer, asked, sampling, self.policy.eos_ids, vocabulary)


def refuse_longer(client: Client | None, prompts: list[Prompt], sampling: Sampling, world: World) -> None:
    """Raise InputError where the server's context has no room for a prompt and a response of full length."""
    room = world.by_main(lambda: None if client is None else client.context)
    longest = max(len(prompt.ids) for prompt in prompts)
    if room is not None and longest + sampling.max_new_tokens > room:
        raise InputError(
            f"sampling.max_new_tokens: a prompt of {longest} tokens and a response of {sampling.max_new_tokens} need "
            f"{longest + sampling.max_new_tokens}, and the vLLM server was started with --max-model-len {room}. Start "
            "it with more, or set data.max_prompt_tokens or sampling.max_new_tokens lower."
        )


def written(
    answer: dict[str, Any],
    asked: list[list[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    vocabulary: int,
) -> list[Written]:
    """Parse the responses in an answer of ``Client.answer``; raises ValueError for one that cannot be trained on."""
    ids_N, logprobs_N, count = answer["completion_ids"], answer["logprobs"], len(asked) * sampling.candidates
    if len(ids_N) != count:
        raise ValueError(f"it gave {len(ids_N)} responses, asked for {count}")
    if answer["prompt_ids"] != asked:
        raise ValueError("the prompts that it answered are not those it was asked")
    if logprobs_N is None:
        raise ValueError("it gave no log-probabilities")
    found = []
    for row, (ids, logprobs, drawn) in enumerate(
        zip(ids_N, logprobs_N, answer["logprob_token_ids"], strict=True)
    ):
        if not 1 <= len(ids) <= sampling.max_new_tokens:
            raise ValueError(f"response {row} has {len(ids)} tokens, of at most {sampling.max_new_tokens}")
        if drawn != [[token] for token in ids]:
            raise ValueError(f"the log-probabilities of response {row} are not those of its tokens")
        if not all(0 <= token < vocabulary for token in ids):
            raise ValueError(f"response {row} has tokens that the model does not know")
        if len(ids) < sampling.max_new_tokens and ids[-1] not in eos_ids:
            raise ValueError(f"response {row} breaks off after {len(ids)} tokens, without an end of sequence")
        of_drawn = [value for (value,) in logprobs]
        for value in of_drawn:
            # Rounding may leave a certain token a little above 0.
            if value is None or not -math.inf < value < 1e-3:
                raise ValueError(
                    f"response {row} has a token of log-probability {math.nan if value is None else value}"
                )
        found.append(Written(ids, of_drawn))
    return found
