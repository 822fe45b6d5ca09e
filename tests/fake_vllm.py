"""A server that speaks what is asked of vLLM, on loopback, and a channel in place of NCCL.

Routes, bodies and answers are those of vLLM 0.31 (its ``entrypoints/openai/completion`` and ``entrypoints/serve/dev``),
refused where TRL or we send anything else; those of adapters were recorded from vLLM 0.32 on a CPU. It writes with a
model of its own, which gets the weights that are sent, and with the adapters that it is told to load.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast
from unittest.mock import patch
from urllib.parse import urlsplit

import safetensors.torch
import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from transformers import PreTrainedModel, TopKLogitsWarper, TopPLogitsWarper
from trl.generation.vllm_client import VLLMClient
from urllib3.util.retry import Retry

MODEL = "a-model"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Completion(Body):
    """All that may be asked for, and nothing that has to be guessed."""

    model: str
    prompt: list[list[int]]
    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: Literal[0.0]
    repetition_penalty: Literal[1.0]
    presence_penalty: Literal[0.0]
    frequency_penalty: Literal[0.0]
    max_tokens: int
    min_tokens: int
    stop_token_ids: list[int]
    logprobs: Literal[0]
    return_token_ids: Literal[True]
    return_tokens_as_token_ids: Literal[True]


class InitInfo(Body):
    master_address: Literal["127.0.0.1"]
    master_port: int
    rank_offset: Literal[1]
    world_size: Literal[2]
    packed: Literal[True]


class Init(Body):
    init_info: InitInfo


class UpdateInfo(Body):
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class Update(Body):
    update_info: UpdateInfo


class Load(Body):
    lora_name: str
    lora_path: str


class Unload(Body):
    lora_name: str


class Refused(Exception):
    """Status 400, or another."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class FakeVLLM:
    """Serves ``model`` within a ``with``.

    calls       the routes that were asked for, in order; health and models are left out
    asked       the bodies of the requests for responses
    received    the weights of every update, by name
    adapters    those that are loaded: path and model of each, by name
    loaded      the weights of every adapter that was loaded, in the order of loading
    lora        what the server's flags say of adapters; None: started without --enable-lora
    context     --max-model-len
    spoil       changes an answer's choices before they are sent
    before      is called with a route before it is answered; a ConnectionError of it is a server that is dead
    answered    the tokens of all responses of every request
    deaf        takes weights and goes on with its own
    """

    def __init__(self, model: PreTrainedModel, port: int = 0, group_port: int = 0):
        self.model, self.calls, self.asked, self.received = model.eval(), [], [], []
        model.set_attn_implementation("sdpa")  # ours may be read in another thread at that moment
        self.logprobs_mode, self.transfer = "processed_logprobs", {"backend": "nccl"}
        self.lora: dict[str, Any] | None = {"max_lora_rank": 16, "max_loras": 1, "target_modules": None}
        self.name, self.context, self.updates_adapters = MODEL, 64, True
        self.adapters: dict[str, tuple[str, PreTrainedModel]] = {}
        self.loaded: list[dict[str, Tensor]] = []
        self.spoil: Callable[[list[dict[str, Any]]], Any] = lambda choices: None
        self.before: Callable[[str], None] = lambda route: None
        self.deaf, self.updating, self.dead = False, False, False
        self.answered: list[list[list[int]]] = []
        self._generator = torch.Generator().manual_seed(7)
        # The trainer is the one that listens where NCCL is used; who does makes no difference to either side here.
        self._listener = Listener(("127.0.0.1", group_port))
        self._http = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, self))
        self._http.daemon_threads = False  # so that no thread outlives the server
        self.port, self.group_port = self._http.server_port, self._listener.address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "FakeVLLM":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
            self._listener.close()

    def refuse_connections(self) -> None:
        """From now on every route is that of a dead server."""
        self.dead = True
        raise ConnectionResetError

    @property
    def settings(self) -> list[str]:
        """What a config says of this server."""
        return [
            "sampling.engine=vllm",
            f"sampling.vllm.base_url={self.url}",
            f"sampling.vllm.group_port={self.group_port}",
            "sampling.vllm.timeout=10",
        ]

    def answer(self, method: str, route: str, body: bytes) -> Any:
        asked = f"{method} {route}"
        if self.dead:
            raise ConnectionResetError
        if asked == "GET /health":
            return {}
        if asked == "GET /v1/models":
            cards = [{"id": name, "root": path, "parent": MODEL} for name, (path, _) in self.adapters.items()]
            return {"object": "list", "data": [{"id": MODEL, "root": self.name, "parent": None}, *cards]}
        self.calls.append(route)
        self.before(route)
        routes: dict[str, Callable[[], Any]] = {
            "GET /server_info": self._info,
            "GET /get_world_size": lambda: {"world_size": 1},
            "POST /init_weight_transfer_engine": lambda: self._init(Init.model_validate_json(body)),
            "POST /start_weight_update": self._start,
            "POST /update_weights": lambda: self._update(Update.model_validate_json(body).update_info),
            "POST /finish_weight_update": self._finish,
            "POST /reset_prefix_cache": lambda: {"success": True},
            "POST /v1/completions": lambda: self._complete(Completion.model_validate_json(body)),
        }
        if self.updates_adapters:
            routes |= {
                "POST /v1/load_lora_adapter": lambda: self._load(Load.model_validate_json(body)),
                "POST /v1/unload_lora_adapter": lambda: self._unload(Unload.model_validate_json(body)),
            }
        return routes[asked]()

    def _info(self) -> Any:
        model_config = {
            "logprobs_mode": self.logprobs_mode,
            "model": self.name,
            "max_model_len": self.context,
        }
        config = {"weight_transfer_config": self.transfer, "lora_config": self.lora}
        return {"vllm_config": {"model_config": model_config, **config}}

    def _load(self, asked: Load) -> Any:
        name, path = asked.lora_name, Path(asked.lora_path)
        if name in self.adapters:
            raise Refused(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in"
            )
        if not (path / "adapter_config.json").exists():
            raise Refused(f"Loading lora {name} failed: No adapter found for {path}", 404)
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if self.lora is None or rank > self.lora["max_lora_rank"]:
            raise Refused(f"LoRA rank {rank} is greater than max_lora_rank {self.lora}.", 500)
        self.loaded.append(safetensors.torch.load_file(path / "adapter_model.safetensors"))
        adapted = PeftModel.from_pretrained(copy.deepcopy(self.model), path).eval()
        self.adapters[name] = (str(path), cast(PreTrainedModel, adapted))
        return f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, asked: Unload) -> Any:
        if self.adapters.pop(asked.lora_name, None) is None:
            raise Refused(f"The lora adapter '{asked.lora_name}' cannot be found.", 404)
        return f"Success: LoRA adapter '{asked.lora_name}' removed successfully."

    def _init(self, given: Init) -> Any:
        if given.init_info.master_port != self.group_port:
            raise Refused("another port")
        self._channel = self._listener.accept()
        return {"message": "Weight transfer initialized"}

    def _start(self) -> Any:
        if self.updating:
            raise Refused("an update is under way")
        self.updating = True
        return {"message": "Weight update started"}

    def _finish(self) -> Any:
        if not self.updating:
            raise Refused("no update is under way")
        self.updating = False
        return {"message": "Weight update finished"}

    def _update(self, info: UpdateInfo) -> Any:
        if not self.updating:
            raise Refused("no update is under way")
        weights = {}
        for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
            weight = safetensors.torch.load(self._channel.recv_bytes())["weight"]
            if (str(weight.dtype), list(weight.shape)) != (f"torch.{dtype}", shape):
                raise Refused(f"{name} was announced otherwise")
            weights[name] = weight
        self.received.append(weights)
        if not self.deaf:
            wanted = dict(self.model.named_parameters())
            if weights.keys() != wanted.keys():
                raise Refused(f"unknown or missing weights: {weights.keys() ^ wanted.keys()}")
            self.model.load_state_dict(weights, strict=False)
        return {"message": "Weights updated"}

    def _complete(self, asked: Completion) -> Any:
        if self.updating:
            raise Refused("the weights are being changed")
        self.asked.append(asked)
        if asked.model not in (MODEL, *self.adapters):
            raise Refused(f"The model `{asked.model}` does not exist. Valid aliases: {MODEL}.", 404)
        choices = [choice for prompt in asked.prompt for choice in self._choices(prompt, asked)]
        for index, choice in enumerate(choices):
            choice["index"] = index
        self.answered.append([choice["token_ids"] for choice in choices])
        self.spoil(choices)
        return {"id": "cmpl-1", "object": "text_completion", "model": asked.model, "choices": choices}

    @torch.no_grad()
    def _choices(self, prompt: list[int], asked: Completion) -> Iterator[dict[str, Any]]:
        rows, logprobs = torch.tensor([prompt] * asked.n), []
        model = self.model if asked.model == MODEL else self.adapters[asked.model][1]
        for number in range(asked.max_tokens):
            scores = model(input_ids=rows).logits[:, -1].float()
            if number < asked.min_tokens:
                scores[:, asked.stop_token_ids] = -torch.inf
            scores = scores / asked.temperature
            for warp in (asked.top_k and TopKLogitsWarper(asked.top_k), TopPLogitsWarper(asked.top_p)):
                scores = warp(rows, scores) if warp else scores
            drawn = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)
            rows = torch.cat([rows, drawn], 1)
            logprobs.append(scores.log_softmax(-1).gather(1, drawn))
        for ids, values in zip(rows[:, len(prompt) :].tolist(), torch.cat(logprobs, 1).tolist(), strict=True):
            ends = [place for place, token in enumerate(ids) if token in asked.stop_token_ids]
            yield choice(prompt, ids[: ends[0] + 1] if ends else ids, values, "stop" if ends else "length")


def choice(prompt: list[int], ids: list[int], values: list[float], reason: str) -> dict[str, Any]:
    tokens, logprobs = [f"token_id:{token}" for token in ids], values[: len(ids)]
    return {
        "text": "",
        "finish_reason": reason,
        "stop_reason": None,
        "token_ids": ids,
        "prompt_token_ids": prompt,
        "prompt_logprobs": None,
        "logprobs": {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": [{token: value} for token, value in zip(tokens, logprobs, strict=True)],
            "text_offset": [0] * len(ids),
        },
    }


class Handler(BaseHTTPRequestHandler):
    def __init__(self, fake: FakeVLLM, *arguments: Any):
        self.fake = fake
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            try:
                status, said = 200, self.fake.answer(method, urlsplit(self.path).path, body)
            except KeyError as error:
                status, said = 404, {"detail": f"no route {error}"}
            except (Refused, ValidationError) as error:
                status, said = getattr(error, "status", 400), {"error": {"message": str(error)}}
            text = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
        except ConnectionError:  # nobody waits for it any more, or the server is dead (see `before`)
            pass

    def log_message(self, *_: object) -> None:
        pass


class Channel:
    """In place of NCCL's communicator: the weights in their order, as bytes."""

    def __init__(self, init_info: dict[str, Any]):
        self.group = SimpleNamespace()  # which TRL takes the socket from when it closes it
        self._connection = Client((init_info["master_address"], init_info["master_port"]))

    def send(self, weight: Tensor) -> None:
        self._connection.send_bytes(safetensors.torch.save({"weight": weight.contiguous()}))


def broadcast(
    iterator: Iterator[Any], group: Channel, src: int, post_iter_func: Callable[[Any], Tensor]
) -> None:
    assert src == 0
    for item in iterator:
        group.send(post_iter_func(item))


@contextmanager
def instead_of_nccl() -> Iterator[None]:
    """TRL's client as it is where vLLM is installed, but for the channel; and it does not wait between attempts."""
    connected = VLLMClient.init_communicator
    parts = {
        "is_vllm_available": lambda min_version=None: True,
        "_HAS_STATEFUL_TRAINER_ENGINE": True,
        "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "get_ip": lambda: "127.0.0.1",
        "open_trainer_endpoint": Channel,
        "packed_nccl_broadcast_producer": broadcast,
    }
    with (
        patch.multiple("trl.generation.vllm_client", create=True, **parts),
        # Whatever the device is, TRL is told that it is one of those that NCCL sends from.
        patch.object(VLLMClient, "init_communicator", lambda client, device: connected(client, "cuda")),
        patch.object(Retry, "get_backoff_time", lambda retry: 0.0),
    ):
        yield
