"""Sampling on a vLLM server, through TRL's client; the policy's weights are sent to it before each rollout.

Token ids and settings go over HTTP and weights from GPU to GPU (NCCL): both are what TRL's ``VLLMClient`` does. This
module decides when that happens, builds the requests and checks the answers.

Weights are sent at the beginning of every rollout. So they are never behind an update, and a run that goes on, or a
server that was started anew, needs nothing else.

Causal models only, and every process must hold all weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from cagsr.config.schema import Sampling, Vllm
from cagsr.distributed.process_group import World
from cagsr.errors import CagsrError, EndpointError, InputError, ran_out_of_memory
from cagsr.io.shutdown import waiting
from cagsr.models.merging import adapters, merged_weight
from cagsr.models.policy import Policy
from cagsr.models.sampling import response_mask
from cagsr.types import Prompt, Rollout

__all__ = ["Client", "VLLMSampler", "connect", "served", "written"]

SHOWN = 400
PROCESSED = "processed_logprobs"
START = (
    """VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' """
    f"--logprobs-mode {PROCESSED}"
)


class Client(Protocol):
    """Protocol of the part of ``trl.generation.vllm_client.VLLMClient`` that is used, once it is connected."""

    base_url: str

    @property
    def generate(self) -> Callable[..., dict[str, Any]]: ...
    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, Tensor]]
    ) -> None: ...
    def reset_prefix_cache(self) -> None: ...


class Written(NamedTuple):
    """One response of the server: its tokens, and the log-probability of each under the sampling distribution."""

    ids: list[int]
    logprobs: list[float]


def connect(server: Vllm, device: torch.device, world: World) -> Client | None:
    """Connect TRL's client, ready to send weights from ``device``; None in every process but the first.

    Raises InputError where TRL or vLLM is not installed here or ``device`` is none that NCCL sends from, and
    EndpointError where the server does not answer, or was started without what training needs.
    """
    found: list[Client] = []
    world.by_main(lambda: found.append(_connected(server, device)))
    return found[0] if found else None


def _connected(server: Vllm, device: torch.device) -> Client:
    with _asking(server.base_url):
        try:
            from trl.generation.vllm_client import VLLMClient

            client = VLLMClient(
                base_url=server.base_url, group_port=server.group_port, connection_timeout=server.timeout
            )
        except ImportError as error:
            raise InputError(
                f"sampling.engine: vllm needs TRL and vLLM where the trainer runs too ({error}); see "
                "docs/guides/many-gpus.md, or set sampling.engine to policy"
            ) from error
        # The session has no time limit of its own: a server that hangs would be waited for without end.
        client.session.request = partial(client.session.request, timeout=server.timeout)  # type: ignore[method-assign]
        mode = client.get_server_info()["model_config"]["logprobs_mode"]
        if mode != PROCESSED:
            raise EndpointError(
                f"sampling.vllm: {server.base_url} gives {mode}, which are not of the distribution that is sampled "
                f"from. Start it with --logprobs-mode {PROCESSED}."
            )
        try:
            client.init_communicator(device)
        except NotImplementedError as error:
            raise InputError(
                f"sampling.engine: vllm: weights go from GPU to GPU, and this run is on {device.type}. Run it on a "
                "GPU of its own, or set sampling.engine to policy."
            ) from error
    return client


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Context manager that turns failures of the server, for which TRL raises a bare Exception, into EndpointError."""
    try:
        yield
    except CagsrError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        kind = "" if type(error) in (Exception, ValueError) else f"{type(error).__name__}: "
        said = " ".join(f"{kind}{error}".split())[:SHOWN]
        # requests' errors are OSErrors; that of an answer which is no JSON is a ValueError as well.
        if isinstance(error, OSError) and not isinstance(error, ValueError):
            raise EndpointError(
                f"sampling.vllm: {url} does not answer ({said}). Start it, as {START}; or set sampling.vllm.base_url "
                "to where it is, or raise sampling.vllm.timeout."
            ) from error
        raise EndpointError(
            f"sampling.vllm: {url} does not answer as it should ({said}). It is to be started as {START}."
        ) from error


@dataclass(frozen=True)
class VLLMSampler:
    """A `models.sampling.Sampler` on a vLLM server. ``client`` is from `connect`: the first process asks for all.

    Raises InputError where the model's generation config forbids tokens, UnsupportedModelError for an adapter that
    cannot be merged.
    """

    policy: Policy
    client: Client | None
    world: World
    held_to_policy: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        adapters(self.policy.model, "sampling.engine")  # one that cannot be merged is refused now
        if self.policy.rules.never or self.policy.rules.not_first:
            raise InputError(
                "sampling.engine: the model's generation_config.json forbids tokens (bad_words_ids, suppress_tokens or "
                "begin_suppress_tokens), which vLLM is not told of; set sampling.engine to policy, or name them in "
                "sampling.ignore_generation_config"
            )

    def sample(self, prompts: list[Prompt], sampling: Sampling, seed: int = 0) -> Rollout:
        """Sample K candidates per prompt with the policy's current weights, and the server's log-probabilities of them.

        ``seed`` is not used: the server has its own randomness. Raises EndpointError in all processes where the
        server does not answer, or not as it should.
        """
        asked = self.world.joined([list(prompt.ids) for prompt in prompts])
        drawn = self.world.share(self.world.by_main(partial(self._ask, asked, sampling)))
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

    def _ask(self, asked: list[list[int]], sampling: Sampling) -> list[Written]:
        assert self.client is not None, "the first process has the client"
        # Among several processes the others wait for the answer, and nobody can leave.
        with _asking(self.client.base_url), waiting() if self.world.size == 1 else nullcontext():
            self._push(self.client)
            answer = self.client.generate(
                asked,
                n=sampling.candidates,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                logprobs=0,  # of the drawn token alone
                generation_kwargs={
                    "min_tokens": sampling.min_new_tokens,
                    "stop_token_ids": self.policy.eos_ids,
                },
            )
            vocabulary = cast(nn.Embedding, self.policy.model.get_input_embeddings()).num_embeddings
            return written(answer, asked, sampling, self.policy.eos_ids, vocabulary)

    # Autocast would round an adapter's product to bfloat16.
    @torch.no_grad()
    def _push(self, client: Client) -> None:
        with torch.autocast(self.policy.device.type, enabled=False):
            weights = served(self.policy.model)
            metadata = [
                (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
                for name, weight, _ in weights
            ]
            client.update_named_params(metadata, ((name, whole()) for name, _, whole in weights))
            client.reset_prefix_cache()


def written(
    answer: dict[str, Any],
    asked: list[list[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    vocabulary: int,
) -> list[Written]:
    """Parse the responses in an answer of ``Client.generate``; raises ValueError for one that cannot be trained on."""
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


def served(model: nn.Module) -> list[tuple[str, Tensor, Callable[[], Tensor]]]:
    """All weights of a causal model for the server: name, the tensor for its shape and dtype, a function that gives it.

    A LoRA adapter is added to a copy of what it adapts, when that is asked for. TRL merges it in place.
    """
    adapted = adapters(model, "sampling.engine")
    return [
        (
            name.removeprefix("base_model.model.").replace(".base_layer.", "."),
            weight,
            partial(merged_weight, weight.detach(), adapted.get(id(weight))),
        )
        for name, weight in model.named_parameters()
        if ".lora_" not in name
    ]
