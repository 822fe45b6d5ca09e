"""`Passes`: the passes of a training step, run by its own code on tensors without data, to see what each holds."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from cagsr.attention.reading import ATTENTION
from cagsr.attention.shared_cache import BLOCK, SharedCache
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.attention.sharing import can_keep
from cagsr.config.schema import Lora, Sampling
from cagsr.errors import CagsrError, UnsupportedModelError
from cagsr.models.casts import casts_kept
from cagsr.models.lora import adapter_on, put_on
from cagsr.models.lora_start import names_layers
from cagsr.models.sampling import cumulated
from cagsr.models.token_logprobs import CHUNK, token_likelihood
from cagsr.models.value_head import ValueHead
from cagsr.planning.ledger import Ledger

__all__ = ["CACHE", "GRADIENTS", "READ", "Passes", "Work"]

CACHE, GRADIENTS, READ = "keys and values", "gradients", "attention read"

MEND = "Train a step and read memory in metrics.jsonl."


class Work(NamedTuple):
    """What goes through a model at once: P prompts of S tokens, and K responses of T tokens to each."""

    prompts: int
    candidates: int
    prompt_tokens: int
    response_tokens: int

    @property
    def rows(self) -> int:
        """N, the responses."""
        return self.prompts * self.candidates

    def masks(self) -> tuple[Tensor, Tensor]:
        """prompt_mask [P S] and response_mask [N T]; the last row of each is a token shorter.

        Rows are then padded, as those of prompts and responses of unequal length are.
        """
        prompt_mask = torch.ones(self.prompts, self.prompt_tokens, dtype=torch.bool)
        response_mask = torch.ones(self.rows, self.response_tokens, dtype=torch.bool)
        prompt_mask[1:, :1][-1:] = False
        response_mask[1:, 1:][-1:, -1:] = False
        return prompt_mask, response_mask


class Passes:
    """The passes of a causal model of this config, with an adapter and a critic where they are asked for.

    ``start`` are PEFT's settings of an adapter to go on from, which is on in the reference too.
    Of more than three blocks that are all alike three are computed: the second stands for all between the first and the
    last. ``weights`` says of each weight how often it is there.

    They raise UnsupportedModelError for a model that looks at data, or whose responses cannot share their prompt.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        dtype: torch.dtype,
        lora: Lora | None = None,
        start: Any = None,
        *,
        critic: bool = False,
        autocast: bool = False,
        trust_remote_code: bool = False,
    ):
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._refusal = f"cagsr plan: the passes of a {config.model_type} cannot be counted without data"
        self._cast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=autocast)
        loaded = {"dtype": dtype, "attn_implementation": ATTENTION, "trust_remote_code": trust_remote_code}
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, **loaded)
            times, names = 1 if names_layers(start) else _shorten(model), model._no_split_modules
            self._vocabulary, width = model.get_output_embeddings().weight.shape
            self._can_keep = can_keep(model)
            adapted = model
            if start is not None:
                adapted = put_on(model, start, "model.lora.path")
            elif lora is not None:
                adapted = adapter_on(model, **lora.model_dump(exclude={"path"}))
        self._start_adapted = start is not None
        self.model: Any = self._on_cpu(adapted).eval()
        with self._fake:
            self._critic = ValueHead(width) if critic else None
        self.blocks = [module for module in self.model.modules() if type(module).__name__ in names]
        repeated = self.blocks[1] if times > 1 else nn.Module()
        repeated.register_forward_pre_hook(self._begin)
        repeated.register_forward_hook(self._end)
        self._times, self._repeated = times, set(repeated.modules())
        own, of_critic = set(repeated.parameters()), self._critic.parameters() if self._critic else ()
        self.weights: dict[Tensor, int] = {
            weight: times if weight in own else 1 for weight in (*self.model.parameters(), *of_critic)
        }
        self.trained: dict[Tensor, int] = {
            weight: count for weight, count in self.weights.items() if weight.requires_grad
        }
        for weight in self.trained:
            weight.register_post_accumulate_grad_hook(self._accumulated)

    def _on_cpu(self, model: nn.Module) -> nn.Module:
        """A copy of a model of the meta device that takes itself to be on the CPU, whose kernels are then chosen."""
        known: dict[int, Any] = {}
        with self._fake:
            for weight in (*model.parameters(), *model.buffers()):
                known[id(weight)] = torch.empty_like(weight, device="cpu")
                if isinstance(weight, nn.Parameter):
                    known[id(weight)] = nn.Parameter(known[id(weight)], weight.requires_grad)
            return copy.deepcopy(model, known)

    def sampling(self, work: Work, sampling: Sampling, read: int = 0) -> Ledger:
        """Decoding: a pass over the prompts, and one before the last token. ``read`` numbers are read meanwhile."""
        ledger = self._start()
        self._cache = cache = SharedCache(work.masks()[0], work.candidates)
        last = work.response_tokens - 1
        with torch.no_grad(), self._cast(), casts_kept(self.model):
            attention = self._room(read)
            logits = self._output(cache, int(cache.ends[-1]) + 1, cache.ends).logits[0]
            with self._counting():
                logits = logits.repeat_interleave(work.candidates, 0)
            allowed = self._draw(logits, sampling)
            while cache.written < last:
                self._make_room(cache)
                cache.written = max(BLOCK, 2 * cache.written)
            if last:
                cache.written = last - 1
                logits = self._output(cache, work.rows, torch.arange(work.rows)).logits[0]
                del allowed  # that of the token before
                allowed = self._draw(logits, sampling)
        del attention, allowed
        return ledger

    def observing(self, work: Work, read: int, told: int, by_policy: bool = False) -> Ledger:
        """A pass over given responses without gradient, by the reference or ``by_policy``.

        ``read`` numbers of attention are read, and ``told`` log-probabilities of the prompts' tokens.
        """
        ledger, shared = self._start(), SharedPrompt(*work.masks())
        with nullcontext() if by_policy else self._frozen(), torch.no_grad(), self._cast():
            held = [self._room(read)]
            output = self._output(shared, sum(shared.split), shared.predicting)
            self._likelihood(output, shared, work)
            # The attention is moved to the prompts' columns; the facts of pieces are put together, then into rows.
            held += [self._room(size) for size in (read, read, told, told)]
        del output, held
        return ledger

    def update(self, work: Work, parts: int, differentiated: bool = True) -> Ledger:
        """The pass that is differentiated, and its gradients; of several ``parts`` one of the later ones."""
        ledger, recomputes = self._start(), getattr(self.model, "is_activation_checkpointing", False)
        for module in self.model.modules():  # as `Policy.train`
            module.training = recomputes and hasattr(module, "gradient_checkpointing")
        for _ in range(min(parts, 2)):
            with self._cast():
                loss = self._loss(SharedPrompt(*work.masks()), work)
            if differentiated:
                with self._counting():
                    loss.backward()
            del loss
        for weight in self.trained:
            weight.grad = None
        self.model.eval()
        return ledger

    def _loss(self, shared: SharedPrompt, work: Work) -> Tensor:
        critic = self._critic
        output = self._output(shared, sum(shared.split), shared.predicting, critic is not None)
        loss = self._likelihood(output, shared, work)
        with self._counting():
            return (
                loss
                if critic is None
                else loss + critic(output.hidden_states[-1][0, shared.predicting]).sum()
            )

    def _likelihood(self, output: Any, shared: SharedPrompt, work: Work) -> Tensor:
        place = shared.place[work.masks()[1]][
            : 2 * max(1, CHUNK // self._vocabulary)
        ]  # what is freed is taken again
        with self._counting():
            return token_likelihood(output.logits[0], place, torch.zeros_like(place))[0].sum()

    def _output(
        self, shared: SharedPrompt | SharedCache, tokens: int, predicting: Tensor, hidden: bool = False
    ) -> Any:
        """The model's output of a row of ``tokens`` as `CausalPolicy` makes it, its logits at ``predicting`` alone."""
        ids, positions = torch.zeros(1, tokens, dtype=torch.long), shared.positions
        keep = {"logits_to_keep": predicting} if self._can_keep else {}
        given = {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": shared.mask,
            "shared_prompt": shared,
        }
        try:
            with self._counting():
                output = self.model(**given, use_cache=False, output_hidden_states=hidden, **keep)
                if not keep:
                    output.logits = output.logits[:, predicting]
        except CagsrError:
            raise
        except Exception as error:  # of any class: it looks at data, or takes no row of prompts and responses
            raise UnsupportedModelError(
                f"{self._refusal} ({type(error).__name__}: {error}). {MEND}"
            ) from error
        if not getattr(shared, "asked", True):
            raise UnsupportedModelError(f"{self._refusal}: it hands no keywords on to its attention. {MEND}")
        return output

    def _draw(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """What `decoding.decode` holds when it draws, and until it draws again."""
        with self._counting():
            allowed = logits.float()
            if sampling.min_new_tokens:
                allowed = allowed.index_fill(-1, torch.zeros(1, dtype=torch.long), -torch.inf)
            if sampling.temperature > 0:
                cumulated(allowed, sampling)
            return allowed

    def _make_room(self, cache: SharedCache) -> None:
        with self._counting():
            for module in cache.kept:
                cache.with_room(module)
        self._count(cache)

    def _count(self, cache: SharedCache) -> None:
        for module, kept in cache.kept.items():
            self._ledger.moved(kept, CACHE, self._times if module in self._repeated else 1)

    def _room(self, size: int) -> Tensor:
        with self._counting():
            room = torch.empty(size)
        self._ledger.moved([room], READ)
        return room

    def _start(self) -> Ledger:
        self._ledger, self._cache = Ledger(self.weights, self.model.buffers(), self._vocabulary), None
        return self._ledger

    def _begin(self, *_: Any) -> None:
        # Without a gradient nothing lasts, nor of a block that is recomputed in the backward pass.
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self._ledger.times = self._times

    def _end(self, *_: Any) -> None:
        self._ledger.times = 1
        if self._cache is not None:  # keys and values last
            self._count(self._cache)

    def _accumulated(self, weight: Tensor) -> None:
        assert weight.grad is not None, "it was accumulated"
        self._ledger.moved([weight.grad], GRADIENTS, self.weights[weight])

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Context manager in which the model is its reference: no weight wants a gradient, a new adapter is off."""
        for weight in self.trained:
            weight.requires_grad_(False)
        new = hasattr(self.model, "disable_adapter") and not self._start_adapted
        with self.model.disable_adapter() if new else nullcontext():
            yield
        for weight in self.trained:
            weight.requires_grad_(True)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with self._fake, self._ledger:
            yield


def _shorten(model: PreTrainedModel) -> int:
    """Leave three of a model's blocks if they are all alike; returns how many blocks the second then stands for."""
    names = model._no_split_modules or ()
    for blocks in model.modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 3 and type(blocks[0]).__name__ in names:
            if any(_shape_of(block) != _shape_of(blocks[0]) for block in blocks):
                return 1
            times = len(blocks) - 2
            del blocks[3:]
            return times
    return 1


def _shape_of(block: nn.Module) -> list[Any]:
    """All that tells a block from another but its number: modules, their settings, shapes of weights."""
    settings = (int, float, str, bool, type(None))
    return [
        (
            name,
            type(module),
            {
                key: value
                for key, value in vars(module).items()
                if isinstance(value, settings) and key != "layer_idx"
            },
            [(weight.shape, weight.dtype) for weight in module.parameters(recurse=False)],
        )
        for name, module in block.named_modules()
    ]
