"""`cagsr sft`: supervised fine-tuning of a base model on references, in a run directory."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress

from cagsr.config import Config, check_paths
from cagsr.data import splits
from cagsr.data.readers import Row
from cagsr.data.row_messages import say_rows
from cagsr.distributed.process_group import World, accelerated
from cagsr.errors import InputError
from cagsr.evaluation.evaluator import answer, values_of
from cagsr.evaluation.score import was_finished
from cagsr.io.quiet_libraries import memory_named, warn
from cagsr.io.terminal import said, say
from cagsr.models.build import build_policy
from cagsr.models.from_scratch import new_model, new_tokenizer
from cagsr.models.load import make_policy, save_model, saved_form
from cagsr.models.lora import is_adapted
from cagsr.models.policy import Policy
from cagsr.runs.directory import RunDirectory
from cagsr.runs.identity import of_data, of_start
from cagsr.runs.session import Claim
from cagsr.tasks import TASKS
from cagsr.tasks import tokenizer as task_tokenizer
from cagsr.tasks.checkers import find_checker
from cagsr.training.preflight import check_launch, check_training, refuse_narrow_weights
from cagsr.training.progress import Clock, bar
from cagsr.training.sft import fine_tune
from cagsr.types import Prompt

__all__ = ["run_sft"]


# What supervised training reads of a config, and so what must be the same to go on.
READ = ("model", "data", "sft", "train.seed", "train.mixed_precision")


def run_sft(
    config: Config, console: Console, *, resume: bool = False, accept_changes: bool = False
) -> dict[str, Any]:
    """Train on references and write ``model/`` in ``sft.directory``; returns the evaluation (development split).

    With ``sft.scratch`` the model is new, and so is its tokenizer: word-level for a task, BPE for a source.
    ``resume`` goes on with the run of that directory, as `trainer.train` does.
    """
    config = config.replaced({"run.directory": config.sft.directory})
    check_paths(config)
    find_checker(config.data)
    if not config.sft.scratch:
        check_training(config)
    accelerator = accelerated(mixed_precision=config.train.mixed_precision)
    check_launch(accelerator, "cagsr sft")
    console.quiet = console.quiet or not accelerator.is_main_process
    claim = Claim(
        config.sft.directory,
        config,
        of_start(config, READ, accelerator),
        accelerator,
        resume=resume,
        accept_changes=accept_changes,
        console=console,
    )
    with claim, memory_named("sft.batch_size or sft.max_reference_tokens"):
        outcome = claim.finished(config.sft.steps)
        if outcome is not None:
            say(console, f"{claim.directory} is finished; nothing to do.")
            return outcome
        return _fine_tune(config, console, claim)


def _fine_tune(config: Config, console: Console, claim: Claim) -> dict[str, Any]:
    rows = splits.read_rows(config, "train", need_reference=True)
    policy = _new_policy(config, rows) if config.sft.scratch else build_policy(config)
    refuse_narrow_weights(policy)
    policy.to(claim.accelerator.device)
    prompts, report = splits.build_prompts(config, policy, "train", need_reference=True, rows=rows)
    references = [prompt.row["reference"] for prompt in prompts]
    finished = [_was_finished(prompt) for prompt in prompts]
    say_rows(console, "references", report)
    _say_cut(policy, references, config.sft.max_reference_tokens, console)
    if is_adapted(policy.model):
        say(console, f"model/ will be {saved_form(policy)}", style="dim")
    held_out = _held_out_prompts(config, policy)
    claim.start(of_data(prompts))
    continuation = claim.continuation(config, config.sft.save_every, console)
    with bar(console, "sft") as progress, continuation.stops:
        shown = Shown(progress, claim.run, config.sft.steps, console)
        fine_tune(
            policy,
            prompts,
            references,
            config.sft,
            claim.accelerator,
            shown,
            continuation,
            seed=config.train.seed,
            finished=finished,
        )
    if claim.run is not None:
        save_model(policy, claim.directory / "model")
    outcome: dict[str, Any] = {
        "steps": config.sft.steps,
        "seconds": round(continuation.elapsed(), 1),
        **_evaluate(config, policy, held_out, claim.accelerator),
    }
    if claim.run is not None:
        claim.run.write_summary(outcome)
    numbers = said(f"{name} {value:.3f}" for name, value in outcome.items() if name != "steps")
    say(console, f"base in {claim.directory}/model: {numbers}")
    return outcome


class Shown:
    """Callback that shows a step's loss in the progress bar, and every fiftieth in the run directory and the log."""

    def __init__(self, progress: Progress, run: RunDirectory | None, steps: int, console: Console):
        self.progress, self.run, self.steps, self.console = progress, run, steps, console
        self.task, self.clock = progress.add_task("sft", total=steps, numbers=""), Clock(steps)

    def __call__(self, step: int, loss: float) -> None:
        self.progress.update(self.task, completed=step, numbers=f"loss {loss:.3f}")
        left = self.clock.left(step)
        if step % 50 and step != self.steps:
            return
        if self.run is not None:
            self.run.add_metrics(step, {"loss": loss})
        if not self.console.is_interactive:
            say(self.console, f"sft step {step}/{self.steps}  loss {loss:.3f}  {left}")


def _new_policy(config: Config, rows: Sequence[Row]) -> Policy:
    scratch = config.sft.scratch
    assert scratch is not None
    if config.data.task:
        kind = "causal" if scratch.architecture == "llama" else "encoder-decoder"
        tokenizer = task_tokenizer(TASKS[config.data.task], kind)
    else:
        usable = [row.values for row in rows if not row.problem]
        texts = [
            text for row in usable for text in (row["prompt"], row.get("reference")) if isinstance(text, str)
        ]
        if not texts:
            raise InputError(
                f"{config.data.name}: no text to learn a tokenizer from; name data.prompt_column"
            )
        tokenizer = new_tokenizer(texts, scratch.architecture, scratch.vocabulary)
    torch.manual_seed(config.train.seed)
    model = new_model(
        scratch.architecture, tokenizer, layers=scratch.layers, hidden=scratch.hidden, heads=scratch.heads
    )
    return make_policy(model, tokenizer)


def _was_finished(prompt: Prompt) -> bool:
    try:
        return was_finished(prompt.row)
    except ValueError as error:
        raise InputError(f"row {prompt.index + 1}: {error}; correct it, or rename the column") from None


def _say_cut(policy: Policy, references: list[str], limit: int, console: Console) -> None:
    longer = sum(len(row) > limit for row in policy.encode(references))
    if longer:
        warn(
            console,
            f"{longer} of {len(references)} references are longer than sft.max_reference_tokens ({limit}); "
            "they are cut there, and the model is not taught to end at the cut",
        )


def _held_out_prompts(config: Config, policy: Policy) -> list[Prompt]:
    """Held-out prompts, encoded before training, so that what is wrong with them is not found after it."""
    if not splits.has_evaluation_data(config):
        return []
    return splits.build_prompts(config, policy, "development")[0]


def _evaluate(
    config: Config, policy: Policy, prompts: list[Prompt], accelerator: Accelerator
) -> dict[str, float]:
    if not prompts:
        return {}
    answers = answer(
        policy,
        prompts,
        config.sampling.greedy(),
        world=World(accelerator),
        prompts_per_pass=config.train.micro_batch,
    )
    values = values_of(answers, prompts, find_checker(config.data))
    return {name: float(value.mean()) for name, value in values.items()}
