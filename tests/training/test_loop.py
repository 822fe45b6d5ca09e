"""The schedule: which prompts when, weights that are current, the best model, and a run that goes on as if unbroken."""

from collections import Counter
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import tiny
from cagsr.config.schema import AlgorithmSettings, Term, Train
from cagsr.errors import InputError, InterruptedRunError, NumericsError, StoppedError
from cagsr.io.shutdown import Stops
from cagsr.rewards.reward import Reward
from cagsr.runs.checkpoint import Checkpoints
from cagsr.training.algorithms import Algorithm
from cagsr.training.collapse_watch import Collapsed
from cagsr.training.kl import KLController
from cagsr.training.loop import TrainingLoop
from cagsr.training.prompt_order import prompts_for, step_seed


class Recorder:
    """Keeps what it is told; ``after[n]`` is called when step n is done."""

    def __init__(self, **after):
        self.after, self.rows, self.rollouts, self.warnings, self.evaluations = after, [], [], [], []
        self.starts = []

    def on_start(self, step):
        self.starts.append(step)

    def on_step(self, step, row, collected):
        self.rows.append(row)
        self.rollouts.append(collected.rollout)
        self.after.get(f"step_{step}", lambda: None)()

    def on_evaluation(self, step, row):
        self.evaluations.append((step, row))

    def on_warning(self, step, message):
        self.warnings.append((step, message))


class Scripted:
    """An evaluation that says what it was told to say."""

    def __init__(self, *rewards):
        self.start, self.rewards = None, list(rewards)

    def __call__(self):
        return {"reward": self.rewards.pop(0)}


def make_trainer(
    directory, name="llama", algorithm="grpo", schedule=None, observers=(), shuffled_every=2, **settings
):
    watch = settings.pop("watch", None) or tiny.watch(shuffled_every=shuffled_every)
    evaluate, stops = settings.pop("evaluate", None), settings.pop("stops", None)
    policy = tiny.policy(name, critic=algorithm == "ppo", extra_eos=20)
    step = tiny.make_step(
        policy,
        algorithm=Algorithm(
            AlgorithmSettings(
                name=algorithm,
                kl_placement="reward" if algorithm == "ppo" else "loss",
                epochs=2,
                minibatches=2,
            )
        ),
        kl_controller=KLController(0.2, target=0.5, horizon=50),
        groups_per_pass=1,
        **settings,
    )
    return TrainingLoop(
        step=step,
        prompts=tiny.prompts(policy, (3, 7, 2, 5, 4, 6, 3)),
        schedule=schedule or Train(steps=3, prompts_per_step=2, seed=11),
        watch=watch,
        directory=directory,
        checkpoints=Checkpoints(step.accelerator, directory / "checkpoints", "run0"),
        stops=stops or Stops(),
        evaluate=evaluate,
        observers=observers,
    )


def test_every_prompt_comes_once_in_each_pass():
    prompts = tiny.prompts(tiny.policy("llama"), (3,) * 7)
    seen = [prompt.index for number in range(14) for prompt in prompts_for(prompts, number, 3, seed=5)]
    passes = [seen[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6
    assert seen != [prompt.index for n in range(14) for prompt in prompts_for(prompts, n, 3, seed=6)]


def test_a_step_may_need_more_prompts_than_there_are():
    prompts = tiny.prompts(tiny.policy("llama"), (3,) * 3)
    assert Counter(prompt.index for prompt in prompts_for(prompts, 2, 7, seed=0)).total() == 7


def test_a_prompt_that_comes_twice_in_a_step_gets_other_responses_the_second_time():
    policy = tiny.policy("llama")
    prompts = tiny.prompts(policy, (3, 5, 4))
    chosen = prompts_for(prompts, 2, 7, seed=0)
    places = Counter((prompt.index, prompt.occurrence) for prompt in chosen)
    assert set(places.values()) == {1}
    assert all((index, time - 1) in places for index, time in places if time)
    assert {prompt.occurrence for prompt in chosen} == {0, 1, 2}
    rollout = policy.sample(chosen, tiny.SHORT, seed=3)
    written = {}
    for prompt, start in zip(chosen, range(0, 21, 3), strict=True):
        written.setdefault(prompt.index, []).append(tuple(rollout.responses[start : start + 3]))
    assert all(len(set(groups)) == len(groups) for groups in written.values())
    # The first time is that of a step which has it once, wherever it is sampled.
    alone = policy.sample([prompts[chosen[0].index]], tiny.SHORT, seed=3)
    assert tuple(alone.responses) == written[chosen[0].index][0]
    second = next(place for place, prompt in enumerate(chosen) if prompt.occurrence == 1)
    elsewhere = policy.sample(chosen[second:], tiny.SHORT, seed=3)
    assert elsewhere.responses[:3] == rollout.responses[3 * second : 3 * second + 3]


def test_every_step_has_its_own_seed():
    assert len({step_seed(seed, number) for seed in range(3) for number in range(100)}) == 300
    assert step_seed(3, 5) == step_seed(3, 5)


def test_trap_21_each_rollout_is_written_by_the_weights_of_its_step(tmp_path):
    undisturbed = Recorder()
    make_trainer(tmp_path / "a", observers=[undisturbed]).run()

    def disturb():
        with torch.no_grad():
            for parameter in trainer.step.policy.parameters():
                parameter.mul_(-1.0)
        prompts = prompts_for(trainer.prompts, 1, 2, seed=11)
        expected.append(trainer.step.policy.sample(prompts, trainer.step.sampling, step_seed(11, 1)))

    expected = []
    recorder = Recorder(step_1=disturb)
    trainer = make_trainer(tmp_path / "b", observers=[recorder])
    trainer.run()
    assert recorder.rollouts[0].responses == undisturbed.rollouts[0].responses
    assert recorder.rollouts[1].responses == expected[0].responses
    assert recorder.rollouts[1].responses != undisturbed.rollouts[1].responses
    assert [prompt.index for rollout in recorder.rollouts for prompt in rollout.prompts] == [
        prompt.index for number in range(3) for prompt in prompts_for(trainer.prompts, number, 2, seed=11)
    ]


def test_a_row_holds_what_a_run_is_judged_by(tmp_path):
    recorder = Recorder()
    make_trainer(tmp_path, algorithm="ppo", observers=[recorder]).run()
    assert len(recorder.rows) == 3
    assert ["shuffled" in row for row in recorder.rows] == [True, False, True]
    expected = {"reward", "reward_spread", "signal/low_tokens", "length", "finished", "empty", "repetition"}
    expected |= {"kl", "kl_response", "entropy", "tokens", "loss", "policy_loss", "value_loss", "clipped"}
    expected |= {"grad_norm", "learning_rate", "kl_coefficient", "seconds", "tokens_per_second", "memory"}
    assert set(recorder.rows[1]) == expected
    assert recorder.rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert [row["kl_coefficient"] != 0.2 for row in recorder.rows] == [False, True, True]


def names(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


class Killed(BaseException):
    pass


def kill():
    raise Killed


@pytest.mark.parametrize(("name", "algorithm"), [("llama", "grpo"), ("t5", "ppo"), ("bart", "grpo")])
def test_trap_27_a_run_that_was_killed_and_resumed_ends_with_the_same_bits(name, algorithm, tmp_path):
    schedule = Train(steps=4, prompts_per_step=2, save_every=2, evaluate_every=1, seed=11)
    given = {"name": name, "algorithm": algorithm, "schedule": schedule, "shuffled_every": 3}
    whole = Recorder()
    unbroken = make_trainer(tmp_path / "whole", observers=[whole], evaluate=Scripted(0, 1, 2, 3, 2), **given)
    unbroken.run()

    def killed_after(step, *rewards):
        recorder = Recorder(**{f"step_{step}": kill})
        return make_trainer(tmp_path / "broken", observers=[recorder], evaluate=Scripted(*rewards), **given)

    with pytest.raises(Killed):
        killed_after(3, 0, 1, 2).run()
    assert names(tmp_path / "broken") == ["step-000002"]
    last = Recorder()
    resumed = make_trainer(tmp_path / "broken", observers=[last], evaluate=Scripted(3, 2), **given)
    # Whatever happened to random numbers in between does not matter.
    torch.manual_seed(12345)
    result = resumed.run(resume=True)

    for key, value in unbroken.step.policy.state_dict().items():
        assert torch.equal(resumed.step.policy.state_dict()[key], value), key
    timed = {"seconds", "tokens_per_second", "memory"}
    rows = [{key: value for key, value in row.items() if key not in timed} for row in whole.rows]
    assert [{key: value for key, value in row.items() if key not in timed} for row in last.rows] == rows[2:]
    assert resumed.history == unbroken.history
    assert result["best"] == {"step": 3.0, "reward": 3}
    for path in ("model", "best"):
        weights = [(tmp_path / run / path / "model.safetensors").read_bytes() for run in ("whole", "broken")]
        assert weights[0] == weights[1]


def test_resuming_before_the_first_checkpoint_is_starting(tmp_path):
    fresh, resumed = make_trainer(tmp_path / "fresh"), make_trainer(tmp_path / "resumed")
    untimed = [{**trainer.run(resume=trainer is resumed), "seconds": 0} for trainer in (fresh, resumed)]
    assert untimed[0] == untimed[1]
    for one, other in zip(
        tiny.weights_of(fresh.step.policy).values(),
        tiny.weights_of(resumed.step.policy).values(),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_run_without_a_checkpoint_evaluates_its_base_again_and_one_stopped_in_its_first_step_does_not(
    tmp_path,
):
    whole, again, further = Recorder(), Recorder(), Recorder()
    make_trainer(tmp_path / "a", evaluate=Scripted(0, 1), observers=[whole]).run()
    make_trainer(tmp_path / "b", evaluate=Scripted(0, 1), observers=[again]).run(resume=True)
    assert [step for step, _ in again.evaluations] == [step for step, _ in whole.evaluations] == [0, 3]
    assert again.starts == whole.starts == [None]
    with pytest.raises(StoppedError):
        make_trainer(tmp_path / "c", evaluate=Scripted(0), stops=Asked(2)).run()
    make_trainer(tmp_path / "c", evaluate=Scripted(1), observers=[further]).run(resume=True)
    assert (further.starts, [step for step, _ in further.evaluations]) == ([0], [3])


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
def test_the_best_and_the_last_model_are_on_disk_and_say_the_same(name, tmp_path):
    logits = {}
    prompt = tiny.prompts(tiny.policy(name), (5,))[0]
    inputs = {"input_ids": torch.tensor([prompt.ids])}
    if name != "llama":
        inputs["decoder_input_ids"] = torch.tensor([[0, 7, 11]])

    class Remembering(Scripted):
        def __call__(self):
            with torch.no_grad():
                logits[len(logits)] = trainer.step.policy.model(**inputs).logits
            return super().__call__()

    recorder = Recorder()
    schedule = Train(steps=4, prompts_per_step=2, evaluate_every=2, seed=3)
    # The base's own number is no candidate, however high it is.
    evaluate = Remembering(9.0, 0.7, 0.3)
    trainer = make_trainer(tmp_path, name=name, schedule=schedule, evaluate=evaluate, observers=[recorder])
    result = trainer.run()
    assert [step for step, _ in recorder.evaluations] == [0, 2, 4]
    assert result == {
        "steps": 4,
        "best": {"step": 2.0, "reward": 0.7},
        "last": [{"step": 4.0, "reward": 0.3}],
        "seconds": result["seconds"],
    }
    loader = AutoModelForCausalLM if name == "llama" else AutoModelForSeq2SeqLM
    for path, expected in (("best", logits[1]), ("model", logits[2])):
        loaded = loader.from_pretrained(tmp_path / path, attn_implementation="cagsr").eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=0, atol=0)
        assert (tmp_path / path / "tokenizer.json").is_file()
    assert not torch.equal(logits[1], logits[2])


def test_trap_25_a_collapsed_run_stops_with_a_checkpoint_and_can_be_continued(tmp_path):
    watch = tiny.watch(
        repetition=tiny.limit(limit=-1.0, action="stop", patience=2),
        kl=tiny.limit(limit=-1.0, action="warn", patience=1),
    )
    recorder = Recorder()
    trainer = make_trainer(tmp_path, watch=watch, observers=[recorder])
    with pytest.raises(Collapsed, match=r"step 2: repetition is .*, above -1, for 2 checks in a row"):
        trainer.run()
    assert len(recorder.rows) == 2
    assert [step for step, _ in recorder.warnings] == [1]
    assert names(tmp_path) == ["step-000002"]
    assert not (tmp_path / "model").exists()
    relaxed = make_trainer(
        tmp_path,
        watch=tiny.watch(repetition=tiny.limit(limit=2.0, action="stop", patience=2)),
        observers=[recorder],
    )
    relaxed.run(resume=True)
    assert len(recorder.rows) == 3
    assert relaxed.watch.beyond == {"repetition": 0, "kl": 2}


class Asked(Stops):
    """Asked to stop at the n-th time it is looked at, by a signal or the time limit."""

    def __init__(self, at, request=15):
        super().__init__()
        self.at, self.request, self.looks = at, request, 0

    def requested(self):
        self.looks += 1
        return self.request if self.looks == self.at else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """``unbroken(name, algorithm)``: three steps that nobody stopped, run once, and what was seen of them."""

    @cache
    def run(name, algorithm):
        seen = Recorder()
        trainer = make_trainer(tmp_path_factory.mktemp("whole"), name, algorithm, observers=[seen])
        trainer.run()
        return trainer, seen

    return run


# A step has four optimizer steps (two epochs of two minibatches), and is looked at between them and at its end; before
# the first, once the base is evaluated. Signals at random moments of whole runs: proofs/stopped.py.
@pytest.mark.parametrize(
    ("name", "algorithm", "at"),
    [("llama", "grpo", at) for at in (0, 3, 4)] + [("t5", "ppo", at) for at in (1, 2, 7)],
)
def test_a_run_that_was_asked_to_stop_anywhere_goes_on_to_the_same_bits(
    name, algorithm, at, unbroken, tmp_path
):
    given = {"name": name, "algorithm": algorithm}
    unbroken, whole = unbroken(name, algorithm)
    first, last = Recorder(), Recorder()
    step, update = divmod(at, 4)
    place = f"in step {step + 1}, after {update} optimizer" if update else f"after step {step} of 3"
    with pytest.raises(
        StoppedError, match=f"stopped by SIGTERM {place}.*everything is saved, --resume goes on"
    ):
        make_trainer(tmp_path / "broken", observers=[first], stops=Asked(at + 1), **given).run()
    assert names(tmp_path / "broken") == [f"step-{step:06d}" + (f"-update-{update:04d}" if update else "")]
    torch.manual_seed(12345)
    resumed = make_trainer(tmp_path / "broken", observers=[last], **given)
    resumed.run(resume=True)
    assert last.starts == [step]
    assert resumed.step.scheduler.state_dict() == unbroken.step.scheduler.state_dict()
    timed = {"seconds", "tokens_per_second", "memory"}
    rows = [{key: value for key, value in row.items() if key not in timed} for row in whole.rows]
    again = [{key: value for key, value in row.items() if key not in timed} for row in first.rows + last.rows]
    assert again == rows
    for one, other in zip(whole.rollouts, first.rollouts + last.rollouts, strict=True):
        assert (one.responses, [p.index for p in one.prompts]) == (
            other.responses,
            [p.index for p in other.prompts],
        )
    for key, value in unbroken.step.policy.state_dict().items():
        assert torch.equal(resumed.step.policy.state_dict()[key], value), key


def test_a_run_stopped_at_every_place_there_is_ends_with_the_same_bits(unbroken, tmp_path):
    unbroken, _ = unbroken("llama", "grpo")
    stops, trainer = 0, None
    while True:
        trainer = make_trainer(tmp_path / "broken", stops=Asked(1))
        try:
            trainer.run(resume=True)
            break
        except StoppedError:
            stops += 1
    # Once after the base, then three steps of four optimizer steps; at the very end there is nothing left to stop.
    assert stops == 12
    for key, value in unbroken.step.policy.state_dict().items():
        assert torch.equal(trainer.step.policy.state_dict()[key], value), key


def test_a_run_stopped_in_a_step_with_replaced_prompts_goes_on_to_the_same_bits(tmp_path):
    def partly_equal(evidence):
        alike = torch.tensor([prompt.index % 2 == 0 for prompt in evidence.rollout.prompts])
        return tiny.low_tokens(evidence).masked_fill(evidence.per_row(alike), 0.25)

    def made(place, **given):
        reward = Reward([Term("partly_equal", standardise="none")], extra={"partly_equal": partly_equal})
        schedule = Train(steps=1, prompts_per_step=4, seed=11, replacements=2)
        return make_trainer(tmp_path / place, reward=reward, schedule=schedule, **given)

    recorder = Recorder()
    unbroken = made("whole", observers=[recorder])
    unbroken.run()
    assert recorder.rows[0]["replaced"] > 0
    # After the first epoch's first optimizer step, and after the second epoch's.
    for at in (1, 3):
        with pytest.raises(StoppedError, match=f"in step 1, after {at} optimizer"):
            made(f"broken{at}", stops=Asked(at + 1)).run()
        resumed = made(f"broken{at}")
        resumed.run(resume=True)
        for key, value in unbroken.step.policy.state_dict().items():
            assert torch.equal(resumed.step.policy.state_dict()[key], value), (at, key)


class Urgent(Stops):
    """A stop that can wait no longer when the n-th module of a network is about to run; None: never, it counts them."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.looks = at, 0

    def overdue(self):
        self.looks += 1
        return 15 if self.looks == self.at else 0


class Measured(Scripted):
    """An evaluation of the very weights, by passes of the model; ``start`` is what it saw first."""

    def __init__(self):
        super().__init__()
        self.trainer = None

    def __call__(self):
        policy = self.trainer.step.policy
        rollout = policy.sample(self.trainer.prompts[:3], tiny.SHORT)
        found = float(policy.logprobs(rollout).sum())
        self.start = self.start or {"mean": [found]}
        return {"reward": found - self.start["mean"][0]}


def measured_run(directory, *, resume=False, **given):
    """A run of three steps that is evaluated after each, what it came to, and what was seen of it."""
    seen, evaluate = Recorder(), Measured()
    schedule = Train(steps=3, prompts_per_step=2, evaluate_every=1, save_every=2, seed=11)
    trainer = make_trainer(directory, schedule=schedule, evaluate=evaluate, observers=[seen], **given)
    evaluate.trainer = trainer
    return trainer, seen, lambda: trainer.run(resume=resume)


@pytest.mark.parametrize(("name", "algorithm"), [("llama", "grpo"), ("t5", "ppo")])
def test_a_stop_that_cannot_wait_throws_away_what_is_begun_and_nothing_else(name, algorithm, tmp_path):
    given, counter = {"name": name, "algorithm": algorithm}, Urgent()
    unbroken, whole, run = measured_run(tmp_path / "whole", stops=counter, **given)
    outcome = run()
    words = set()
    # In the first step before anything is saved, in an evaluation, and in the last step; more places, of whole runs:
    # proofs/slow_stops.py.
    for part in (0.3, 0.4, 0.9):
        at = int(part * counter.looks)
        broken = tmp_path / str(at)
        _, first, run = measured_run(broken, stops=Urgent(at), **given)
        with pytest.raises(
            StoppedError, match=r"stopped by SIGTERM .*everything is saved, --resume goes on"
        ) as stop:
            run()
        words.add("evaluated" if "while it evaluated" in str(stop.value) else "in step")
        resumed, last, run = measured_run(broken, resume=True, **given)
        assert {**run(), "seconds": 0} == {**outcome, "seconds": 0}
        assert first.evaluations + last.evaluations == whole.evaluations
        rows = [
            [{**row, "seconds": 0, "tokens_per_second": 0, "memory": 0} for row in one]
            for one in (first.rows + last.rows, whole.rows)
        ]
        assert rows[0] == rows[1]
        assert not list((broken / "checkpoints").glob("aside-*"))
        for key, value in unbroken.step.policy.state_dict().items():
            assert torch.equal(resumed.step.policy.state_dict()[key], value), (at, key)
    assert words == {"evaluated", "in step"}


def test_a_run_that_is_stopped_again_and_again_gets_to_its_end(tmp_path):
    unbroken, whole, run = measured_run(tmp_path / "whole")
    run()
    evaluations, at, stopped = [], 1, 0
    while True:
        last, seen, run = measured_run(tmp_path / "broken", resume=True, stops=Urgent(at))
        try:
            run()
            break
        except StoppedError:
            at, stopped = at + 97, stopped + 1
        finally:
            evaluations += seen.evaluations
    assert stopped > 5
    assert evaluations == whole.evaluations
    for key, value in unbroken.step.policy.state_dict().items():
        assert torch.equal(last.step.policy.state_dict()[key], value), key


def test_ctrl_c_and_the_time_limit_say_which_they_were(tmp_path):
    with pytest.raises(InterruptedRunError, match=r"stopped by Ctrl-C after step 1 of 3") as ctrl_c:
        make_trainer(tmp_path / "a", stops=Asked(5, request=2)).run()
    with pytest.raises(StoppedError, match=r"stopped by the time limit after step 1 of 3") as limit:
        make_trainer(tmp_path / "b", stops=Asked(5, request=-1)).run()
    assert (ctrl_c.value.exit_code, limit.value.exit_code) == (130, 75)


def test_a_run_that_is_further_than_its_steps_is_named(tmp_path):
    make_trainer(tmp_path).run()
    shorter = make_trainer(tmp_path, schedule=Train(steps=2, prompts_per_step=2, seed=11))
    with pytest.raises(InputError, match=r"train\.steps \(2\): .* is at step 3 already"):
        shorter.run(resume=True)


def test_numbers_that_went_bad_name_the_step_and_leave_no_checkpoint(tmp_path):
    def spoil():
        trainer.step.kl_controller.coefficient = float("nan")

    trainer = make_trainer(
        tmp_path,
        observers=[Recorder(step_2=spoil)],
        schedule=Train(steps=5, prompts_per_step=2, save_every=1, seed=11),
    )
    with pytest.raises(
        NumericsError, match=r"step 3: the loss is nan \(first in a response to the prompt of index \d"
    ):
        trainer.run()
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    def spoil():
        with torch.no_grad():
            next(iter(trainer.step.policy.parameters()))[0, 0] = float("inf")

    trainer = make_trainer(
        tmp_path,
        observers=[Recorder(step_2=spoil)],
        schedule=Train(steps=5, prompts_per_step=2, save_every=1, seed=11),
    )
    with pytest.raises(
        NumericsError, match=r"step 2: the weights .* are not finite any more; nothing was saved"
    ):
        trainer.run()
    assert names(tmp_path) == ["step-000001"]


def test_a_step_that_was_begun_is_not_finished_by_another_config(tmp_path):
    with pytest.raises(StoppedError):
        make_trainer(tmp_path, stops=Asked(2)).run()
    other = make_trainer(tmp_path)
    other.identity = "other"
    with pytest.raises(
        InputError, match=r"was stopped inside step 1, whose rest can only be trained as it was begun"
    ):
        other.run(resume=True)


def test_another_kl_coefficient_that_was_asked_for_holds_and_the_same_one_goes_on_from_where_it_was(tmp_path):
    schedule = Train(steps=3, prompts_per_step=2, save_every=1, seed=11)
    first = make_trainer(tmp_path, schedule=schedule)
    first.run()
    reached = first.step.kl_controller.coefficient
    assert reached != 0.2
    for start, expected in ((0.2, reached), (0.7, 0.7)):
        again = make_trainer(tmp_path, schedule=schedule)
        again.step.kl_controller.coefficient = start
        again.run(resume=True)
        assert again.step.kl_controller.coefficient == expected


def test_what_is_due_at_the_step_of_a_collapse_is_done_before_it_stops(tmp_path):
    recorder = Recorder()
    watch = tiny.watch(repetition=tiny.limit(limit=-1.0, action="stop", patience=2))
    schedule = Train(steps=4, prompts_per_step=2, evaluate_every=2, seed=11)
    trainer = make_trainer(
        tmp_path, watch=watch, schedule=schedule, observers=[recorder], evaluate=Scripted(0.0, 0.5)
    )
    with pytest.raises(Collapsed):
        trainer.run()
    assert [step for step, _ in recorder.evaluations] == [0, 2]
    assert trainer.best == {"step": 2.0, "reward": 0.5}
