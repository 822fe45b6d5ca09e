"""A LoRA adapter sent to a vLLM server as files that the server loads while it runs: on any device, without NCCL.

Every rollout has an adapter of its own, under a name that nothing had before. The server reads its files, answers by
that name, and forgets it. So an answer cannot be of another rollout's adapter: a server that does not have this one
knows no model of that name, and its prefix cache is keyed by an adapter's name and path. That the server applies the
whole of it is not proved here (docs/limits.md).

Server and trainer must find the run directory under the same path.

Source: https://docs.vllm.ai/en/latest/features/lora (dynamically serving LoRA adapters), and vLLM 0.32's
``entrypoints/openai/models/serving.py``.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from torch import nn

from cagsr.config.schema import Sampling, Vllm
from cagsr.errors import EndpointError, InputError
from cagsr.io.adapters import adapter_at
from cagsr.io.atomic_write import storing
from cagsr.io.provenance import identity
from cagsr.models.vllm_server import PROCESSED, Trained, asking, check_logprobs

__all__ = ["Adapter", "AdapterClient", "connect_for_adapters"]

PLACE = "adapter-for-vllm"
"""Directory within a run's own that holds the adapter of a rollout, as long as that is written."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM's --max-lora-rank may have."""

ATTEMPTS = 6
PAUSE = 1.0
"""Seconds before a server that did not answer is looked for again."""

PLAIN = (".lora_A.weight", ".lora_B.weight")
"""Ends of the names of all weights that a server takes. It passes over trained embeddings without a word."""


@dataclass(frozen=True)
class Adapter:
    """What is known of an adapter before its model is loaded.

    base       directory or hub name of the model that it is trained on, in a form that a server loads
    rank       the largest of its modules
    directory  of the run
    """

    base: str
    rank: int
    directory: Path

    @property
    def start(self) -> str:
        """The command line that starts a server for it."""
        rank = next((rank for rank in RANKS if rank >= self.rank), self.rank)
        return (
            f"VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {self.base} --enable-lora "
            f"--max-lora-rank {rank} --logprobs-mode {PROCESSED}"
        )


class Refused(ValueError):
    """A status other than 200; ``status`` is it."""

    def __init__(self, status: int, said: str):
        super().__init__(f"status {status}: {said}")
        self.status = status


@dataclass(frozen=True)
class AdapterClient:
    """A `models.vllm_server.Client` that hands the adapter over as files and asks for it by name.

    A server that dies is waited for and asked again, from the adapter on: it may have been started anew.
    """

    http: httpx2.Client
    adapter: Adapter
    timeout: float
    context: int = 0

    @property
    def base_url(self) -> str:
        """Where the server is."""
        return str(self.http.base_url).rstrip("/")

    @property
    def start(self) -> str:
        """The command line that starts it."""
        return self.adapter.start

    @property
    def directory(self) -> Path:
        """Where the adapter of a rollout lies."""
        return self.adapter.directory.absolute() / PLACE

    def check(self, model: nn.Module) -> None:
        """Raise InputError for an adapter of which the server would leave a part out, or that it would not take."""
        others = [
            name for name, weight in model.named_parameters() if weight.requires_grad and not _plain(name)
        ]
        configs: Mapping[str, Any] = getattr(model, "peft_config", {})
        if others or [*configs] != ["default"]:
            what = (
                f"it trains {others[0]}" if others else f"it has the adapters {', '.join(configs) or 'none'}"
            )
            raise InputError(
                f"sampling.engine: vllm takes one plain LoRA adapter named default, and of this model {what}. Leave "
                "modules_to_save, bias, DoRA and trained tokens out, or set sampling.engine to policy."
            )

    def answer(
        self, model: nn.Module, asked: list[list[int]], sampling: Sampling, stop: list[int], weights: Trained
    ) -> dict[str, Any]:
        """See `models.vllm_server.Client`."""
        with self._saved(model, weights) as path:
            for left in reversed(range(ATTEMPTS)):
                try:
                    self.examine()  # it may have been started anew since the last rollout, and otherwise
                    return self._written_by(path, asked, sampling, stop)
                except (httpx2.TransportError, Refused) as error:
                    # What a dying server says is no refusal, and one started anew does not know this adapter.
                    if left == 0 or (
                        isinstance(error, Refused) and error.status < 500 and error.status != 404
                    ):
                        raise
                    time.sleep(PAUSE)
                    self.wait()
        raise AssertionError("the last attempt returns or raises")

    def wait(self) -> None:
        """Return once the server is up; raises what keeps it from that when ``timeout`` is over."""
        until = time.monotonic() + self.timeout
        while True:
            try:
                response = self.http.get("/health")
                if response.status_code == 200:
                    return
                problem: Exception = Refused(response.status_code, response.text)
            except httpx2.TransportError as error:
                problem = error
            if time.monotonic() >= until:
                raise problem
            time.sleep(PAUSE)

    def examine(self) -> Mapping[str, Any]:
        """The server's config; raises for a server that was started without what training this adapter needs."""
        about = self.get("/server_info?config_format=json")["vllm_config"]
        check_logprobs(self.base_url, about["model_config"]["logprobs_mode"])
        _check_loading(self, about["lora_config"])
        _check_base(self.base_url, about["model_config"]["model"], self.adapter)
        return about

    @contextmanager
    def _saved(self, model: Any, weights: Trained) -> Iterator[Path]:
        """The adapter's files, in a directory that nothing else was ever in; they go when they are not needed."""
        path = self.directory / f"cagsr-{secrets.token_hex(8)}"
        try:
            with storing(path):
                shutil.rmtree(self.directory, ignore_errors=True)  # of a process that was killed
                model.save_pretrained(path, save_embedding_layers=False, state_dict=weights)
            yield path
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _written_by(
        self, path: Path, asked: list[list[int]], sampling: Sampling, stop: list[int]
    ) -> dict[str, Any]:
        self._unload()
        name = f"{path.name}-{secrets.token_hex(4)}"  # another at every attempt: one given up may still be loading
        try:
            self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        except Refused as error:
            if error.status == 404:
                raise EndpointError(
                    f"sampling.vllm: {self.base_url} does not find {path}, where the adapter of this rollout lies. Set "
                    "run.directory to a place that server and trainer both see, under the same path."
                ) from error
            raise
        try:
            answer = self.post("/v1/completions", _request(name, asked, sampling, stop)).json()
        except Refused:
            with suppress(httpx2.TransportError, Refused):
                self._unload()
            raise
        self._unload()
        if answer["model"] != name:
            raise ValueError(f"{answer['model']} answered, and {name} was asked")
        return _as_trl(answer["choices"], sampling.candidates)

    def _unload(self) -> None:
        """Let the server forget the adapters of this run: this rollout's, and one that a killed process left."""
        for card in self.get("/v1/models")["data"]:
            if card.get("parent") and Path(card["root"]).parent == self.directory:
                self.post("/v1/unload_lora_adapter", {"lora_name": card["id"]})

    def get(self, route: str) -> Any:
        """The JSON of a route; raises Refused."""
        return _accepted(self.http.get(route)).json()

    def post(self, route: str, body: Mapping[str, Any]) -> httpx2.Response:
        """The answer of a route to a JSON body; raises Refused."""
        return _accepted(self.http.post(route, json=body))


def connect_for_adapters(server: Vllm, adapter: Adapter, or_weights: bool) -> AdapterClient | None:
    """Wait for the server, and refuse one that was started without what training this adapter needs.

    None where ``or_weights`` can be sent, and the server was started for that instead. Raises InputError and
    EndpointError.
    """
    client = AdapterClient(
        httpx2.Client(base_url=server.base_url, timeout=server.timeout), adapter, server.timeout
    )
    with asking(client.base_url, client.start):
        client.wait()
        if or_weights:
            about = client.get("/server_info?config_format=json")["vllm_config"]
            if about["lora_config"] is None and about["weight_transfer_config"] is not None:
                return None
        return replace(client, context=client.examine()["model_config"]["max_model_len"])


def _check_loading(client: AdapterClient, limits: Mapping[str, Any] | None) -> None:
    """Raise EndpointError for a server that cannot load the adapter while it runs."""
    rank, problem = client.adapter.rank, None
    if limits is None:
        problem = "takes no LoRA adapters. Start it with --enable-lora"
    elif limits["max_lora_rank"] < rank:
        problem = f"takes adapters up to rank {limits['max_lora_rank']}, and model.lora.r is {rank}. Start it with more"
    elif limits.get("target_modules") is not None:
        problem = "leaves modules of adapters out. Start it without --lora-target-modules"
    elif client.http.post("/v1/load_lora_adapter", json={}).status_code == 404:
        problem = "loads no adapter while it runs. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
    if problem:
        raise EndpointError(f"sampling.vllm: {client.base_url} {problem}: {client.start}")


def _check_base(url: str, there: str, adapter: Adapter) -> None:
    """Raise for a base that is known to be another one than the server's.

    What cannot be compared (its path leads nowhere here) is refused in a rollout where log-probabilities are too far
    apart (`training.step_metrics.measure`).
    """
    here = adapter.base
    if adapter_at(here) is not None:
        raise InputError(
            f"model.name: {here} is an adapter itself, which a server would need merged into its base. Save the whole "
            "model, name it and start the server with it, or set sampling.engine to policy."
        )
    if os.path.isdir(here) and os.path.isdir(there):
        same = os.path.samefile(here, there) or identity(here)["sha256"] == identity(there)["sha256"]
    else:
        # A directory has no name on the hub that it could be compared with.
        same = os.path.isdir(here) or os.path.isdir(there) or os.path.isabs(there) or here == there
    if not same:
        raise EndpointError(
            f"sampling.vllm: {url} serves {there}, which is not the model that is trained, {here}. Start it as "
            f"{adapter.start}, or set model.name to what it serves."
        )


def _request(name: str, asked: list[list[int]], sampling: Sampling, stop: list[int]) -> dict[str, Any]:
    """Body of a request for completions; what the server would else take from its model's generation config is set."""
    return {
        "model": name,
        "prompt": asked,
        "n": sampling.candidates,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "stop_token_ids": stop,
        "logprobs": 0,  # of the drawn token alone
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def _as_trl(choices: list[dict[str, Any]], candidates: int) -> dict[str, Any]:
    """The choices of an answer, as `models.vllm_server.Client` says."""
    choices = sorted(choices, key=lambda choice: choice["index"])
    told = [choice["logprobs"] for choice in choices]
    prompts = [choice["prompt_token_ids"] for choice in choices]
    if any(prompt != prompts[row // candidates * candidates] for row, prompt in enumerate(prompts)):
        raise ValueError("the responses to a prompt do not come one after another")
    return {
        "prompt_ids": prompts[::candidates],
        "completion_ids": [choice["token_ids"] for choice in choices],
        "logprobs": [[[value] for value in each["token_logprobs"]] for each in told],
        "logprob_token_ids": [
            [[int(token.removeprefix("token_id:"))] for token in each["tokens"]] for each in told
        ],
    }


def _accepted(response: httpx2.Response) -> httpx2.Response:
    if response.status_code != 200:
        raise Refused(response.status_code, response.text)
    return response


def _plain(name: str) -> bool:
    return name.replace(".default.", ".").endswith(PLAIN)
