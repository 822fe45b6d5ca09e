"""`Passes`: the passes of a training step, run by its own code on tensors without data, to see what each holds."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from transformers import AutoModelForCausalLM, PretrainedConfig

from cagsr.attention.reading import ATTENTION
from cagsr.attention.shared_cache import BLOCK, SharedCache
from cagsr.attention.shared_prompt import SharedPrompt
from cagsr.attention.sharing import can_keep
from cagsr.config.schema import Lora, Sampling
from cagsr.errors import UnsupportedModelError
from cagsr.models.casts import casts_kept
from cagsr.models.lora import adapter_on
from cagsr.models.sampling import cumulated
from cagsr.models.token_logprobs import CHUNK, token_likelihood
from cagsr.models.value_head import ValueHead
from cagsr.planning.ledger import Ledger

__all__ = ["CACHE", "GRADIENTS", "READ", "Passes", "Work"]

CACHE, GRADIENTS, READ = "keys and values", "gradients", "attention read"


class Work(NamedTuple):
    """What goes through a model at once: P prompts of S tokens, and K responses of T tokens to each.

    One prompt and one response are a token shorter: rows are then padded, as those of unequal prompts are.
    """

    prompts: int
    candidates: int
    prompt_tokens: int
    response_tokens: int

    @property
    def rows(self) -> int:
        """N, the responses."""
        return self.prompts * self.candidates

    def masks(self) -> tuple[Tensor, Tensor]:
        """prompt_mask [P S] and response_mask [N T]."""
        prompt_mask = torch.ones(self.prompts, self.prompt_tokens, dtype=torch.bool)
        response_mask = torch.ones(self.rows, self.response_tokens, dtype=torch.bool)
        prompt_mask[1:, :1][-1:] = False
        response_mask[1:, 1:][-1:, -1:] = False
        return prompt_mask, response_mask


class Passes:
    """The passes of a causal model of this config, an adapter and a critic on it where they are asked for.

    Raises UnsupportedModelError for a model whose passes depend on data, or whose responses cannot share a prompt.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        dtype: torch.dtype,
        lora: Lora | None = None,
        *,
        critic: bool = False,
        checkpointing: bool = False,
        autocast: bool = False,
    ):
        self._fake, self._autocast, self._kind = FakeTensorMode(allow_non_fake_inputs=True), autocast, config.model_type
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
            self._vocabulary, width = model.get_output_embeddings().weight.shape
            self._can_keep, names = can_keep(model), model._no_split_modules or ()
            adapted = model if lora is None else adapter_on(model, **lora.model_dump())
        self.model: Any = self._on_cpu(adapted).eval()
        self.blocks = [module for module in self.model.modules() if type(module).__name__ in names]
        with self._fake:
            self.value_head = ValueHead(width) if critic else None
        if checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        self._checkpointing = checkpointing

    def _on_cpu(self, model: nn.Module) -> nn.Module:
        """A copy of a model of the meta device that takes itself to be on the CPU, whose kernels are then chosen."""
        known: dict[int, Any] = {}
        with self._fake:
            for weight in (*model.parameters(), *model.buffers()):
                known[id(weight)] = torch.empty_like(weight, device="cpu")
                if isinstance(weight, nn.Parameter):
                    known[id(weight)] = nn.Parameter(known[id(weight)], weight.requires_grad)
            return copy.deepcopy(model, known)

    @property
    def weights(self) -> list[nn.Parameter]:
        """All weights, those of an adapter and a critic among them."""
        return [*self.model.parameters(), *(self.value_head.parameters() if self.value_head else [])]

    @property
    def base(self) -> list[nn.Parameter]:
        """The model's own weights, without an adapter's."""
        return [weight for name, weight in self.model.named_parameters() if ".lora_" not in name]

    def sampling(self, work: Work, sampling: Sampling, read: int = 0) -> Ledger:
        """The pass over the prompts and the one before the last token; ``read`` numbers are read meanwhile."""
        ledger, cache, steps = self._ledger(), SharedCache(work.masks()[0], work.candidates), work.response_tokens - 1
        each = torch.arange(work.rows)
        with torch.no_grad(), self._cast(), casts_kept(self.model):
            attention = self._room(ledger, read)
            logits = self._logits(ledger, cache, int(cache.ends[-1]) + 1, cache.ends)
            with self._counting(ledger):
                logits = logits.repeat_interleave(work.candidates, 0)
            allowed = self._draw(ledger, logits, sampling)
            while cache.written < steps:
                with self._counting(ledger):
                    for module in cache.kept:
                        cache.with_room(module)
                ledger.moved((each for kept in cache.kept.values() for each in kept), CACHE)
                cache.written = BLOCK if cache.written == 0 else 2 * cache.written
            if steps:
                cache.written = steps - 1
                logits = self._logits(ledger, cache, work.rows, each)
                allowed = self._draw(ledger, logits, sampling)
        del attention, allowed
        return ledger

    def observing(self, work: Work, read: int, told: int) -> Ledger:
        """A pass over given responses without gradient, by the model without its adapter.

        ``read`` numbers of attention are read, and ``told`` log-probabilities of the prompts' tokens.
        """
        ledger, shared = self._ledger(), SharedPrompt(*work.masks())
        base = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()
        with torch.no_grad(), self._cast(), base:
            held = [self._room(ledger, read)]
            logits = self._logits(ledger, shared, sum(shared.split), shared.predicting)
            # The attention is moved to the prompts' columns; the facts of chunks are put together, then into rows.
            held += [self._room(ledger, size) for size in (read, read, told, told)]
        del logits, held
        return ledger

    def update(self, work: Work, parts: int) -> Ledger:
        """The pass that is differentiated, and its gradients; with several ``parts`` those of an earlier one are there."""
        ledger, (prompt_mask, response_mask) = self._ledger(), work.masks()
        for module in self.model.modules():  # as `Policy.train`
            module.training = self._checkpointing and hasattr(module, "gradient_checkpointing")
        trained = [weight for weight in self.weights if weight.requires_grad]
        hooks = [
            weight.register_post_accumulate_grad_hook(lambda one: ledger.moved([one.grad], GRADIENTS))
            for weight in trained
        ]
        for _ in range(min(parts, 2)):
            shared = SharedPrompt(prompt_mask, response_mask)
            with self._cast():
                loss = self._loss(ledger, shared, shared.place[response_mask])
            with self._counting(ledger):
                loss.backward()
        for weight, hook in zip(trained, hooks, strict=True):
            hook.remove()
            weight.grad = None
        self.model.eval()
        return ledger

    def _loss(self, ledger: Ledger, shared: SharedPrompt, place: Tensor) -> Tensor:
        logits = self._logits(ledger, shared, sum(shared.split), shared.predicting, self.value_head is not None)
        one_chunk = place[: max(1, CHUNK // self._vocabulary)]  # they take turns in the same memory
        with self._counting(ledger):
            return token_likelihood(logits, one_chunk, torch.zeros_like(one_chunk))[0].sum()

    def _logits(self, ledger: Ledger, shared: Any, tokens: int, predicting: Tensor, hidden: bool = False) -> Tensor:
        keep = {"logits_to_keep": predicting} if self._can_keep else {}
        ids, positions = torch.zeros(1, tokens, dtype=torch.long), shared.positions
        with self._counting(ledger):
            output = self.model(
                input_ids=ids,
                attention_mask=shared.mask,
                position_ids=positions,
                shared_prompt=shared,
                use_cache=False,
                output_hidden_states=hidden,
                **keep,
            )
            return output.logits[0] if keep else output.logits[0, predicting]

    def _draw(self, ledger: Ledger, logits: Tensor, sampling: Sampling) -> Tensor:
        with self._counting(ledger):
            allowed = logits.float()
            if sampling.min_new_tokens:
                allowed = allowed.index_fill(-1, torch.zeros(1, dtype=torch.long), -torch.inf)
            if sampling.temperature > 0:
                cumulated(allowed, sampling)
            return allowed

    def _room(self, ledger: Ledger, size: int) -> Tensor:
        with self._counting(ledger):
            room = torch.empty(size)
        ledger.moved([room], READ)
        return room

    def _ledger(self) -> Ledger:
        return Ledger([*self.weights, *self.model.buffers()], self._vocabulary)

    def _cast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._autocast)

    @contextmanager
    def _counting(self, ledger: Ledger) -> Iterator[None]:
        try:
            with self._fake, ledger:
                yield
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise UnsupportedModelError(
                f"cagsr plan: what a {self._kind} computes depends on data ({error.func}), which it is not given. Train "
                "a step and read memory in metrics.jsonl."
            ) from error
