"""Part of the check: what sharing a prompt saves, and a whole step, of models made from nothing."""

import random
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks.gpu.cost import DTYPES, Shapes, compared, milliseconds, peak
from cagsr.attention.sharing import Sharing
from cagsr.config import Config
from cagsr.data.splits import build_prompts
from cagsr.models.build import build_policy
from cagsr.models.from_scratch import new_model
from cagsr.models.load import make_policy
from cagsr.models.policy import Policy
from cagsr.rewards.presets import build_reward
from cagsr.rewards.salience import build_salience
from cagsr.tasks import TASKS
from cagsr.tasks.tokenizer import tokenizer
from cagsr.training.assembly import build_step
from cagsr.types import Observation, Prompt, Rollout

ARCHITECTURES = {"llama": "causal", "t5": "encoder-decoder"}


def rolled(policy: Policy, shapes: Shapes) -> Rollout:
    """Random tokens; prompts and responses are of unequal length."""
    count, candidates, longest, written = shapes.shared
    random.seed(0)
    prompts = [
        Prompt("", tuple(random.randrange(3, 100) for _ in range(longest - n)), (), (), n)
        for n in range(count)
    ]
    rows = count * candidates
    mask = torch.arange(written) < written - torch.arange(rows)[:, None] % min(written, 5)
    responses = torch.randint(3, 100, mask.shape)
    moved = (each.to(policy.device) for each in (responses, mask, torch.ones(rows, dtype=torch.bool)))
    return Rollout(prompts, *policy.collate(prompts), *moved, [""] * rows)


class Shared:
    """A policy that observes, or is differentiated, with a prompt computed once or for each of its responses."""

    def __init__(self, architecture: str, dtype: str, device: torch.device, shapes: Shapes):
        torch.manual_seed(0)
        words = tokenizer(TASKS["slots"], ARCHITECTURES[architecture])
        self.policy = make_policy(new_model(architecture, words, **shapes.small), words).to(device)
        self.rollout = rolled(self.policy, shapes)
        self.how = {"a prompt for each": Sharing("it is measured without"), "shared": self.policy.sharing}
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def observe(self, how: str) -> Observation:
        self.policy.sharing = self.how[how]
        with self.autocast:
            return self.policy.observe(self.rollout)

    def differentiate(self, how: str) -> None:
        self.policy.sharing = self.how[how]
        self.policy.zero_grad()
        with self.autocast:
            scored = self.policy(self.rollout)
        scored.logprobs.sum().backward()


def sharing(device: torch.device, shapes: Shapes) -> list[dict[str, Any]]:
    """Observing and differentiating K responses of each prompt, the prompt computed K times and once."""
    found = []
    for architecture in ARCHITECTURES:
        for dtype in DTYPES:
            made = Shared(architecture, dtype, device, shapes)
            alone, shared = (made.observe(how).attention for how in made.how)
            for what in (made.observe, made.differentiate):
                case = {
                    "architecture": architecture,
                    "dtype": dtype,
                    "what": what.__name__,
                    "possible": made.how["shared"].possible,
                    "difference": float((alone - shared).abs().max()),
                }
                ways = {how: partial(what, how) for how in made.how}
                found.append(case | {"ways": compared(ways, device, shapes.rounds)})
                print(f"sharing: {case}", flush=True)
    return found


def steps(device: torch.device, shapes: Shapes) -> list[dict[str, Any]]:
    """`Step.collect` and `Step.update` of models from nothing, as a config builds them, after one that warms up."""
    found = []
    for architecture, kind in ARCHITECTURES.items():
        for precision in ("no", "bf16"):
            with TemporaryDirectory() as directory:
                torch.manual_seed(0)
                words = tokenizer(TASKS["slots"], kind)
                new_model(architecture, words, **shapes.small).save_pretrained(directory)
                words.save_pretrained(directory)
                found.append(step(device, config_for(directory, precision, shapes)))
                found[-1] |= {"architecture": architecture, "precision": precision}
                print(f"step: {found[-1]}", flush=True)
    return found


def config_for(model: str, precision: str, shapes: Shapes) -> Config:
    prompts, candidates, _, written = shapes.shared
    return Config.model_validate(
        {
            "model": {"name": model},
            "data": {"task": "slots", "count": 4 * prompts},
            "reward": {"preset": "coverage"},
            "sampling": {"candidates": candidates, "max_new_tokens": written},
            "train": {
                "prompts_per_step": prompts,
                "micro_batch": prompts * candidates,
                "mixed_precision": precision,
            },
        }
    )


def step(device: torch.device, config: Config) -> dict[str, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision otherwise
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=config.train.mixed_precision)
    policy = build_policy(config)
    prompts, _ = build_prompts(config, policy, "train")
    built = build_step(
        config,
        policy,
        build_reward(config.reward, None),
        build_salience(config, prompts),
        accelerator,
    )
    batch = prompts[: config.train.prompts_per_step]
    taken: dict[str, Any] = {}

    def collect() -> None:
        taken["collected"] = built.collect(batch, seed=0)

    def update() -> None:
        taken["means"] = built.update(taken["collected"].batches)

    def both() -> None:
        collect()
        update()

    both()
    memory = peak(both, device)
    return {
        "collect": milliseconds(collect, device),
        "update": milliseconds(update, device),
        "mebibytes": memory,
        "tokens": int(taken["collected"].rollout.response_mask.sum()),
        "loss": taken["means"]["loss"],
        "grad_norm": taken["means"]["grad_norm"],
    }
