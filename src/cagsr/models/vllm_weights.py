"""All weights sent to a vLLM server from GPU to GPU (NCCL), by TRL's client, which must find vLLM installed here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cagsr.config.schema import Sampling, Vllm
from cagsr.errors import InputError
from cagsr.models.merging import adapters, merged_weight
from cagsr.models.vllm_server import PROCESSED, Trained, asking, check_logprobs

__all__ = ["WeightClient", "connect_for_weights", "served"]

START = (
    """VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' """
    f"--logprobs-mode {PROCESSED}"
)


@dataclass(frozen=True)
class WeightClient:
    """A `models.vllm_server.Client` that sends all weights before it asks. ``trl`` is its connected ``VLLMClient``."""

    trl: Any
    device: torch.device
    context: int
    start: str = START

    @property
    def base_url(self) -> str:
        """Where the server is."""
        return self.trl.base_url

    def check(self, model: nn.Module) -> None:
        """Raise UnsupportedModelError for an adapter that cannot be merged into the weights that are sent."""
        served(model)

    def answer(
        self, model: nn.Module, asked: list[list[int]], sampling: Sampling, stop: list[int], weights: Trained
    ) -> dict[str, Any]:
        """See `models.vllm_server.Client`; never of a model in shards (`training.preflight`)."""
        self.push(model)
        return self.trl.generate(
            asked,
            n=sampling.candidates,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            logprobs=0,  # of the drawn token alone
            generation_kwargs={
                "min_tokens": sampling.min_new_tokens,
                "stop_token_ids": stop,
                # Else they would be the model's generation config's.
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            },
        )

    # Autocast would round an adapter's product to bfloat16.
    @torch.no_grad()
    def push(self, model: nn.Module) -> None:
        """Send the model's weights, and let the server forget what it computed with those before."""
        with torch.autocast(self.device.type, enabled=False):
            weights = served(model)
            metadata = [
                (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
                for name, weight, _ in weights
            ]
            self.trl.update_named_params(metadata, ((name, whole()) for name, _, whole in weights))
            self.trl.reset_prefix_cache()


def connect_for_weights(server: Vllm, device: torch.device) -> WeightClient:
    """Connect TRL's client, ready to send weights from ``device``.

    Raises InputError where TRL or vLLM is not installed here or ``device`` is none that NCCL sends from, and
    EndpointError where the server does not answer, or was started without what training needs.
    """
    with asking(server.base_url, START):
        try:
            from trl.generation.vllm_client import VLLMClient

            client = VLLMClient(
                base_url=server.base_url, group_port=server.group_port, connection_timeout=server.timeout
            )
        except ImportError as error:
            raise InputError(
                f"sampling.engine: vllm needs TRL and vLLM where the trainer runs too ({error}); see "
                "docs/guides/many-gpus.md, train an adapter (model.lora), which goes without them, or set "
                "sampling.engine to policy"
            ) from error
        # The session has no time limit of its own: a server that hangs would be waited for without end.
        client.session.request = partial(client.session.request, timeout=server.timeout)  # type: ignore[method-assign]
        about = client.get_server_info()["model_config"]
        check_logprobs(server.base_url, about["logprobs_mode"])
        try:
            client.init_communicator(device)
        except NotImplementedError as error:
            raise InputError(
                f"sampling.engine: vllm: weights go from GPU to GPU, and this run is on {device.type}. Run it on a "
                "GPU of its own, train an adapter (model.lora), which goes as a file, or set sampling.engine to policy."
            ) from error
    return WeightClient(client, device, about["max_model_len"])


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
