"""`plan`: the memory that each process of a training will take, by part and phase, counted from its config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cagsr.attention.positions import longest_text
from cagsr.config import Config
from cagsr.data.splits import has_evaluation_data
from cagsr.errors import CagsrError, InputError, UnsupportedModelError
from cagsr.models.build import recompute_activations
from cagsr.models.load import config_of
from cagsr.models.lora_start import adapter_to_go_on_from
from cagsr.models.predictions import LARGE
from cagsr.models.proof import named_windows, shares_at_all
from cagsr.planning.ledger import ACTIVATIONS, CASTS, LOGITS
from cagsr.planning.passes import CACHE, GRADIENTS, READ, Passes, Work
from cagsr.rewards.presets import as_read, build_reward, possible
from cagsr.tasks.bases import base_name
from cagsr.tasks.checkers import find_checker
from cagsr.training.algorithms import Algorithm
from cagsr.training.assembly import groups_per_pass
from cagsr.training.preflight import check_training

__all__ = ["PARTS", "Phase", "Plan", "plan"]

WEIGHTS, REFERENCE, COPY = "weights", "reference", "rounded copy that writes"
MOMENTS, GATHERED = "optimizer moments", "gathered weights"
PARTS = (WEIGHTS, REFERENCE, COPY, MOMENTS, GATHERED, CASTS, GRADIENTS, CACHE, LOGITS, ACTIVATIONS, READ)


@dataclass(frozen=True)
class Phase:
    """A phase of training, and the bytes of each part of its memory at the moment when all together take most."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """The phases of a training, as each of its processes goes through them; ``work`` is one pass of an update."""

    phases: tuple[Phase, ...]
    work: Work
    processes: int

    @property
    def peak(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)


def plan(config: Config, processes: int = 1) -> Plan:
    """The memory that each of so many processes takes, which hold weights in shards (FSDP2) if they are several.

    All prompts are taken to be of ``data.max_prompt_tokens`` and all responses of ``sampling.max_new_tokens``. No
    weights are loaded, and no data: of the model only its config is read.

    Raises InputError as `train` does, and for what cannot be counted.
    """
    return _Counted(config, processes).plan()


class _Counted:
    def __init__(self, config: Config, processes: int):
        self.config, self.processes = as_read(config), processes
        longest = config.data.max_prompt_tokens
        if longest is None:
            raise InputError(
                "data.max_prompt_tokens: cagsr plan reads no data; set it to the tokens of the longest prompt"
            )
        if processes == 1 and not config.train.gather_for_rollouts:
            raise InputError(
                "train.gather_for_rollouts: false is for weights in shards; give --processes, or leave it out"
            )
        if processes > 1 and config.sampling.dtype is not None:
            raise InputError("sampling.dtype: not with weights in shards; leave it out, or --processes")
        if processes > 1 and config.sampling.engine == "vllm" and config.model.lora is None:
            raise InputError(
                "sampling.engine: vllm takes an adapter from shards, and not all weights; set model.lora, or leave out "
                "--processes"
            )
        rewards = [build_reward(each.reward, find_checker(config.data)) for each in possible(config)]
        for each, reward in zip(possible(config), rewards, strict=True):
            check_training(each, reward)
        wanted = [reward.wanted(None) for reward in rewards]
        self.told = any(one.prompt_logprobs for one in wanted)
        divided = all(each.reward.salience.kind in ("pieces", "column") for each in possible(config))
        logged = config.run.log_candidates > 0
        self.by_piece = divided and not logged and not any(one.by_token for one in wanted)
        mine = config.train.prompts_per_step // processes
        self.part = Work(
            groups_per_pass(config, processes),
            config.sampling.candidates,
            longest,
            config.sampling.max_new_tokens,
        )
        self.step = self.part._replace(prompts=mine)
        self.parts = mine // self.part.prompts // config.algorithm.minibatches
        self.passes = self.writer = self._passes(config.model.dtype)
        if config.sampling.dtype is not None:
            self.writer = self._passes(config.sampling.dtype, rounded=True)

    def _passes(self, dtype: str, rounded: bool = False) -> Passes:
        model, name = self.config.model, base_name(self.config)
        found = config_of(name, revision=model.revision, trust_remote_code=model.trust_remote_code)
        if model.load_in_4bit or getattr(found, "quantization_config", None) is not None:
            raise UnsupportedModelError(
                "cagsr plan: weights in few bits are not counted (model.load_in_4bit, or a model that is quantised "
                "already). Leave it out, and take the weights of the linear layers for a quarter of bfloat16's."
            )
        if found.is_encoder_decoder:
            raise UnsupportedModelError(
                f"cagsr plan: {name} is an encoder-decoder, and only causal models are counted. Train a step and read "
                "memory in metrics.jsonl."
            )
        settings = {
            "critic": self.config.algorithm.name == "ppo",
            "trust_remote_code": model.trust_remote_code,
            "autocast": self.config.train.mixed_precision == "bf16" and not rounded,
        }
        lora, start = (None, None) if rounded else (model.lora, None)
        if lora is not None and lora.path is not None:
            start = adapter_to_go_on_from(lora.path, name, model.revision).settings
        try:
            passes = Passes(found, getattr(torch, dtype), lora, start, **settings)
        except CagsrError:
            raise
        except Exception as error:  # libraries raise errors of any class
            raise UnsupportedModelError(
                f"cagsr plan: {name} cannot be made from its config ({type(error).__name__}: {error}). Train a step "
                "and read memory in metrics.jsonl."
            ) from error
        self._check_shared(passes.model, name)
        if self.config.train.gradient_checkpointing:
            recompute_activations(passes.model, name)
        return passes

    def _check_shared(self, model: PreTrainedModel, name: str) -> None:
        """Raise for lengths that the model has no positions for, and where responses may not share their prompt.

        Training finds that out by numbers (`models.proof`), and goes on without, which takes more memory.
        """
        tokens = self.part.prompt_tokens + self.part.response_tokens
        context = longest_text(model, model.config.get_text_config(decoder=True))
        if context is not None and tokens > context:
            raise InputError(
                f"cagsr plan: {tokens} tokens of a prompt and its response, and the context of {name} has {context}. "
                "Set data.max_prompt_tokens or sampling.max_new_tokens lower."
            )
        windows = [window for window in named_windows(model) if window < tokens]
        problem = None
        if any(isinstance(module, nn.Conv1d) for module in model.modules()) or not shares_at_all(model):
            problem = "it mixes tokens outside of attention, or by where they stand"
        elif windows:
            problem = f"{tokens} tokens go beyond a window of {min(windows)}"
        if problem:
            raise UnsupportedModelError(
                f"cagsr plan: responses of {name} may not share their prompt ({problem}), and then take more than is "
                "counted. Train a step and read memory in metrics.jsonl."
            )

    def plan(self) -> Plan:
        update = self._update()  # first, because it finds out which models cannot be counted
        sampling = [self._sampling()] if self.config.sampling.engine == "policy" else []
        evaluation = [self._evaluation()] if has_evaluation_data(self.config) else []
        return Plan((*sampling, self._observing(), update, *evaluation), self.part, self.processes)

    def _sampling(self) -> Phase:
        numbers = sum(self._read(self.step)) if self.reads_while_writing else 0
        held = self.writer.sampling(self.step, self.config.sampling, numbers).most()
        return self._phase("sampling", self._gathered_to_roll_out(), held)

    def _observing(self) -> Phase:
        config, of_part = self.config, self._read(self.part)
        before = (
            4 * sum(self._read(self.step)) if self.reads_while_writing else 0
        )  # it is there of the whole step
        by_policy = config.reward.observer == "policy" and not before
        held = self.passes.observing(self.part, *((0, 0) if before else of_part), by_policy).most()
        if Algorithm(config.algorithm).needs_old or config.sampling.engine == "vllm":
            old = self.passes.update(self.part, 1, differentiated=False).most() | {READ: 4 * sum(of_part)}
            held = _larger(held, old)
        held[READ] += before
        return self._phase("observing", self._gathered_to_roll_out(), held)

    def _update(self) -> Phase:
        trained, several = self.passes.trained, self.processes > 1
        # Of several parts FSDP2 adds up whole gradients until the last one.
        share = 1.0 if self.parts > 1 else 1 / self.processes
        held = self.passes.update(self.part, self.parts).most({GRADIENTS: share})
        held[GRADIENTS] = held.get(GRADIENTS, 0) + 2 * self._block(trained_only=True) * several
        # AdamW takes one weight after the other on a CPU, and two more of its size.
        largest = max(weight.nbytes for weight in trained)
        stepping = {GRADIENTS: _bytes(trained) // self.processes, ACTIVATIONS: 2 * largest}
        held = _larger(held, stepping)
        return self._phase("update", self._outside() + 3 * self._block(), held)

    def _evaluation(self) -> Phase:
        count = min(
            self.config.train.micro_batch, math.ceil(self.config.data.evaluation_count / self.processes)
        )
        work, greedy = self.part._replace(prompts=count, candidates=1), self.config.sampling.greedy()
        written, read = self.passes.sampling(work, greedy), self.passes.observing(work, *self._read(work))
        held = _larger(written.most(), read.most())
        return self._phase("evaluation", self._gathered_to_roll_out(), held)

    @property
    def reads_while_writing(self) -> bool:
        """Whether the policy is its own observer, and writes."""
        writes = self.config.sampling.engine == "policy" and self.config.sampling.dtype is None
        return writes and self.config.reward.observer == "policy"

    def _read(self, work: Work) -> tuple[int, int]:
        """Numbers [N T S] (or by piece) of attention, and of log-probabilities of the prompts' tokens."""
        every = work.rows * work.response_tokens * work.prompt_tokens
        most = self.config.reward.salience.most
        read = work.rows * work.response_tokens * most if self.by_piece and every >= LARGE else every
        return read, every * self.told

    def _phase(self, name: str, gathered: int, held: Mapping[str, int]) -> Phase:
        """All that a phase holds: what it ``held`` beside what lies there all the time."""
        share = _bytes(self.passes.weights) // self.processes
        lasting = {
            WEIGHTS: share,
            REFERENCE: share if self.copied else _bytes(self.passes.trained) * self.goes_on,
            COPY: 0 if self.writer is self.passes else _bytes(self.writer.weights),
            MOMENTS: 2 * _bytes(self.passes.trained) // self.processes,
            GATHERED: gathered if self.processes > 1 else 0,
        }
        return Phase(name, {part: size for part in PARTS if (size := {**lasting, **held}.get(part, 0))})

    @property
    def copied(self) -> bool:
        """Whether the reference is a whole copy of the policy, and not that without its new adapter or with another."""
        return self.config.model.lora is None or (self.goes_on and self.processes > 1)

    @property
    def goes_on(self) -> bool:
        """Whether training goes on from an adapter."""
        return self.config.model.lora is not None and self.config.model.lora.path is not None

    def _gathered_to_roll_out(self) -> int:
        """Bytes of whole weights of policy and reference while responses are written and scored."""
        if self.config.train.gather_for_rollouts:
            return (1 + self.copied) * _bytes(self.passes.weights)
        return (1 + self.copied) * self._outside() + 2 * self._block()

    def _block(self, trained_only: bool = False) -> int:
        """Bytes of the largest block."""
        return (
            max(
                sum(
                    weight.nbytes for weight in block.parameters() if weight.requires_grad or not trained_only
                )
                for block in self.passes.blocks
            )
            if self.passes.blocks
            else 0
        )

    def _outside(self) -> int:
        """Bytes of the weights outside of the blocks."""
        inside = {weight for block in self.passes.blocks for weight in block.parameters()}
        return sum(weight.nbytes for weight in self.passes.weights if weight not in inside)


def _larger(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return max(one, other, key=lambda parts: sum(parts.values()))


def _bytes(weights: Mapping[Tensor, int]) -> int:
    return sum(times * weight.nbytes for weight, times in weights.items())
