"""A vLLM server as a sampler sees it: what is asked of it, and what its failures mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import httpx2
from torch import Tensor, nn

from cagsr.config.schema import Sampling
from cagsr.errors import CagsrError, EndpointError, ran_out_of_memory

__all__ = ["PROCESSED", "Client", "Trained", "asking", "check_logprobs"]

SHOWN = 400
PROCESSED = "processed_logprobs"

Trained = dict[str, Tensor] | None
"""What is trained of a model that holds shards of it, gathered by name; None of one that holds all."""


class Client(Protocol):
    """Protocol of a connected server.

    base_url  where it is
    start     the command line that starts it as training needs it
    context   how many tokens a prompt and its response may have together
    """

    @property
    def base_url(self) -> str: ...
    @property
    def start(self) -> str: ...
    @property
    def context(self) -> int: ...

    def check(self, model: nn.Module) -> None:
        """Raise InputError or UnsupportedModelError for a model whose weights cannot be sent in this way."""
        ...

    def answer(
        self, model: nn.Module, asked: list[list[int]], sampling: Sampling, stop: list[int], weights: Trained
    ) -> dict[str, Any]:
        """What the server writes with the model's current weights, K responses to each prompt, as TRL words it.

        ``prompt_ids`` [P S], ``completion_ids`` [N T], ``logprobs`` [N T 1], ``logprob_token_ids`` [N T 1]; lists,
        the responses of a prompt one after another.
        """
        ...


@contextmanager
def asking(url: str, start: str) -> Iterator[None]:
    """Context manager that turns all failures of a server into EndpointError; TRL raises a bare Exception."""
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
        if isinstance(error, OSError | httpx2.TransportError) and not isinstance(error, ValueError):
            raise EndpointError(
                f"sampling.vllm: {url} does not answer ({said}). Start it, as {start}; or set sampling.vllm.base_url "
                "to where it is, or raise sampling.vllm.timeout."
            ) from error
        raise EndpointError(
            f"sampling.vllm: {url} does not answer as it should ({said}). It is to be started as {start}."
        ) from error


def check_logprobs(url: str, mode: str) -> None:
    """Raise EndpointError for a server whose log-probabilities are not of the distribution that it draws from."""
    if mode != PROCESSED:
        raise EndpointError(
            f"sampling.vllm: {url} gives {mode}, which are not of the distribution that is sampled "
            f"from. Start it with --logprobs-mode {PROCESSED}."
        )
