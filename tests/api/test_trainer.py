"""`Trainer`: objects in, the run of the command line out."""

import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, TrainerCallback

import tiny
from cagsr import Config, InputError, Term, Trainer, TrainingConfig, train
from cagsr.errors import SignalError, StoppedError

ROWS = [{"prompt": f"city lyon day {day}"} for day in ("monday", "tuesday", "friday", "sunday", "thursday")]
HELD_OUT = [{"prompt": "city riga day monday"}, {"prompt": "city graz day sunday"}]
SETTINGS = {
    "max_steps": 3,
    "prompts_per_step": 2,
    "micro_batch": 6,
    "num_generations": 3,
    "max_completion_length": 7,
    "learning_rate": 1e-3,
    "preset": "coverage",
}
KEYS = {
    "train.steps": 3,
    "train.prompts_per_step": 2,
    "train.micro_batch": 6,
    "sampling.candidates": 3,
    "sampling.max_new_tokens": 7,
    "train.learning_rate": 1e-3,
    "reward.preset": "coverage",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with the models ``t5`` and ``llama`` and the same rows as files."""
    tiny.save_models(tmp_path)
    for name, rows in (("train", ROWS), ("held-out", HELD_OUT)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet():
    return Console(quiet=True)


def loaded(name="llama"):
    kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    return kind.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def trainer(directory="objects", name="llama", callbacks=(), rows=ROWS, **settings):
    model, tokenizer = loaded(name)
    return Trainer(
        model=model,
        args=TrainingConfig(output_dir=directory, **{**SETTINGS, **settings}),
        train_dataset=rows,
        eval_dataset=HELD_OUT,
        processing_class=tokenizer,
        callbacks=callbacks,
        console=quiet(),
    )


def numbers(directory):
    rows = [json.loads(line) for line in Path(directory, "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second", "memory")}
        for row in rows
    ]


@pytest.mark.parametrize(("name", "as_dataset"), [("llama", True), ("t5", False)])
def test_objects_train_to_the_bit_as_a_config_with_files_does(place, name, as_dataset):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = trainer(name=name, rows=Dataset.from_list(ROWS) if as_dataset else ROWS).train()
        overrides = [f"{key}={value}" for key, value in KEYS.items()]
        overrides += [
            f"model.name={name}",
            "data.source=train.jsonl",
            "data.evaluation_source=held-out.jsonl",
        ]
        overrides += ["run.directory=files"]
        trained = train(Config.load(None, overrides), console=quiet())
    finally:
        torch.set_num_threads(threads)
    assert numbers("objects") == numbers("files")
    mine, theirs = (load_file(f"{run}/model/model.safetensors") for run in ("objects", "files"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert outcome["steps"] == trained.outcome["steps"] == 3
    assert outcome["last"] == trained.outcome["last"]


def test_train_takes_a_yaml_file_with_overrides_and_a_training_config(place):
    Path("my.yaml").write_text(
        "model: {name: llama}\ndata: {source: train.jsonl}\nreward: {preset: coverage}\n"
    )
    small = [f"{key}={value}" for key, value in KEYS.items()]
    assert train("my.yaml", [*small, "run.directory=a"], console=quiet()).outcome["steps"] == 3
    given = TrainingConfig(
        output_dir="b", **SETTINGS, model={"name": "llama"}, data={"source": "train.jsonl"}
    )
    assert train(given, console=quiet()).outcome["steps"] == 3
    assert numbers("a") == numbers("b")


def test_a_finished_run_is_resumed_without_work_and_another_model_is_refused_by_name(place):
    first = trainer().train()
    again = trainer()
    assert again.train(resume_from_checkpoint=True) == first
    saved = load_file("objects/model/model.safetensors")
    assert torch.equal(
        again.model.state_dict()["model.layers.0.mlp.up_proj.weight"],
        saved["model.layers.0.mlp.up_proj.weight"],
    )
    twice = trainer("twice")
    twice.train()
    with pytest.raises(InputError, match="the model was trained in this process already"):
        twice.train(resume_from_checkpoint=True)
    other = trainer()
    with torch.no_grad():
        next(other.loaded.parameters()).add_(1.0)
    with pytest.raises(InputError, match=r"objects was started with something else:\n  model: "):
        other.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="objects belongs to run"):
        trainer().train()


class Watching(TrainerCallback):
    def __init__(self, stop_at=None):
        self.stop_at, self.logs, self.events = stop_at, [], []

    def on_train_begin(self, args, state, control, **given):
        self.events.append(("begin", args.max_steps, given["model"].config.model_type))

    def on_log(self, args, state, control, logs=None, **given):
        self.logs.append((state.global_step, logs["reward"]))

    def on_evaluate(self, args, state, control, metrics=None, **given):
        self.events.append(("evaluate", metrics["reward"]))

    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step == self.stop_at

    def on_train_end(self, args, state, control, **given):
        self.events.append(("end", state.global_step))


def test_callbacks_of_transformers_see_every_step_evaluation_and_the_end(place):
    watching = Watching()
    trainer(callbacks=[watching]).train()
    rows = [row for row in numbers("objects") if "reward" in row]
    assert watching.logs == [(row["step"], row["reward"]) for row in rows]
    assert watching.events[0] == ("begin", 3, "llama")
    assert ("evaluate", 0.0) in watching.events
    assert watching.events[-1] == ("end", 3)  # after the last evaluation


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_train_end"])
def test_what_a_callback_raises_ends_the_run_and_costs_no_row_and_no_checkpoint(place, event):
    class Broken(TrainerCallback):
        pass

    def fail(callback, args, state, control, **given):
        if state.global_step >= 2:
            raise ZeroDivisionError("the user's own")

    setattr(Broken, event, fail)
    settings = {"save_steps": 1, "eval_steps": 2}
    with pytest.raises(ZeroDivisionError):
        trainer("broken", callbacks=[Broken()], **settings).train()
    told = numbers("broken")
    assert [row["step"] for row in told if "loss" in row] == (
        [1, 2, 3] if event == "on_train_end" else [1, 2]
    )
    trainer("broken", **settings).train(resume_from_checkpoint=True)
    trainer("whole", **settings).train()
    assert numbers("broken") == numbers("whole")
    assert (
        load_file("broken/model/model.safetensors").keys()
        == load_file("whole/model/model.safetensors").keys()
    )


def test_a_callback_stops_a_run_which_can_be_resumed_to_the_same_numbers(place):
    trainer("whole").train()
    with pytest.raises(StoppedError, match="stopped by a callback after step 2 of 3; everything is saved"):
        trainer(callbacks=[Watching(stop_at=2)]).train()
    trainer().train(resume_from_checkpoint=True)
    assert numbers("objects") == numbers("whole")


def test_terms_take_the_place_of_the_preset(place):
    model, tokenizer = loaded()
    made = Trainer(
        model,
        TrainingConfig(output_dir="r", **SETTINGS),
        ROWS,
        processing_class=tokenizer,
        reward=[Term("coverage", weight=2.0), Term("length", standardise="none")],
        console=quiet(),
    )
    made.train()
    assert {"signal/coverage", "signal/length"} <= numbers("r")[0].keys()
    assert "signal/surprise" not in numbers("r")[0]
    assert made.model is model


def test_what_is_wrong_is_said_before_anything_is_trained(place):
    model, tokenizer = loaded()
    with pytest.raises(InputError, match="processing_class goes with a loaded model"):
        Trainer("llama", TrainingConfig(output_dir="r"), ROWS, processing_class=tokenizer)
    with pytest.raises(InputError, match="nothing is trained yet"):
        _ = trainer().model
    with pytest.raises(InputError, match="push_to_hub: nothing is trained yet"):
        trainer().push_to_hub("somebody/model")
    with pytest.raises(InputError, match=r"train_dataset row 2: no 'prompt'"):
        Trainer(model, TrainingConfig(output_dir="r"), [ROWS[0], {"text": "x"}], console=quiet()).train()
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learing_rate": 1}, "unknown name 'learing_rate'; did you mean 'learning_rate'?"),
        ({"per_device_train_batch_size": 8}, "it counts completions; set prompts_per_step"),
        ({"max_steps": -1}, "train.steps: got -1, expected an integer of at least 1"),
        ({"watch": {"kl": {"limt": 1}}}, "unknown key 'limt'; did you mean 'limit'?"),
        ({"num_generations": 1}, "TrainingConfig: grpo compares the candidates of a prompt"),
        ({"algorithm": "gpro"}, "did you mean 'grpo'?"),
    ],
)
def test_a_wrong_setting_is_named(given, said):
    with pytest.raises(InputError) as caught:
        Trainer("llama", TrainingConfig(**given), ROWS)
    assert said in str(caught.value)


def test_a_flat_name_wins_over_its_section_and_has_the_default_of_its_key():
    given = TrainingConfig(learning_rate=0.5, train={"learning_rate": 0.1, "weight_decay": 0.2})
    config = given.as_config({"model.name": "m", "data.source": "s"})
    assert (config.train.learning_rate, config.train.weight_decay) == (0.5, 0.2)
    assert TrainingConfig().max_steps == Config.load(None, ["data.task=qa"]).train.steps
    assert given.as_config({"data.task": "qa"}).sampling.candidates == 8


def refused(match, *given, **named):
    with pytest.raises(InputError, match=match):
        Trainer(*given, console=quiet(), **named)


def test_variables_of_the_chat_template_have_trls_name():
    config = TrainingConfig(chat_template_kwargs={"enable_thinking": False}).as_config({"data.task": "slots"})
    assert config.data.chat_template_kwargs == {"enable_thinking": False}


def test_arguments_that_cannot_be_used_are_named(place):
    model, _ = loaded()
    rows, made = ROWS, TrainingConfig(output_dir="r", **SETTINGS)
    refused("expected a name, a transformers PreTrainedModel or a PEFT model, got int", 3)
    refused("args must be a TrainingConfig or a Config, got dict", model, {"max_steps": 3}, rows)
    refused("train_dataset row 1: got 'prompt'", model, made, {"prompt": ["a"]})
    refused("give rows, or name a file", model, made, "train.jsonl")
    refused("train_dataset is empty", model, made, [])
    refused("eval_dataset is empty", model, made, rows, [])
    refused("callbacks must be a list", model, made, rows, callbacks=Watching())
    refused("put objects, not classes", model, made, rows, callbacks=[Watching])
    refused(r"give a list such as \[Term\('coverage'\)\]", model, made, rows, reward=["coverage"])
    refused("has no methods check and quality", model, made, rows, checker=object())
    settings = TrainingConfig(output_dir="r", **SETTINGS, model={"dtype": "bfloat16"})
    refused("model.dtype is for a model that is loaded by name", model, settings, rows)
    task = Config.load(None, ["data.task=slots"])
    refused("data.task brings its own evaluation prompts", model, task, eval_dataset=HELD_OUT)
    with pytest.raises(InputError, match="overrides go with a YAML file"):
        train(task, ["train.steps=3"])


def test_weights_that_round_updates_away_are_refused(place):
    model = AutoModelForCausalLM.from_pretrained("llama", dtype=torch.bfloat16)
    made = Trainer(
        model, TrainingConfig(output_dir="r", **SETTINGS), ROWS, console=quiet(),
        processing_class=AutoTokenizer.from_pretrained("llama"),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"trainable weights are bfloat16.*dtype=torch\.float32"):
        made.train()


def test_an_adapter_trains_from_its_beginning_and_from_where_it_is_by_then(place):
    peft = pytest.importorskip("peft")
    model, tokenizer = loaded()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    frozen = model.get_input_embeddings().weight.detach().clone()

    def trained(directory):
        settings = TrainingConfig(output_dir=directory, **SETTINGS)
        return Trainer(adapted, settings, ROWS, processing_class=tokenizer, console=quiet())

    trained("first").train()
    assert torch.equal(model.get_input_embeddings().weight, frozen)
    trained("second").train()
    assert any(weight.any() for name, weight in adapted.named_parameters() if ".lora_B." in name)
    for run in ("first", "second"):
        assert numbers(run)[0]["kl"] == 0.0
        assert numbers(run)[-1]["kl"] != 0.0


def test_an_adapter_to_go_on_from_is_not_put_on_a_loaded_model(place):
    model, tokenizer = loaded()
    settings = TrainingConfig(output_dir="r", lora={"path": "adapter"}, **SETTINGS)
    with pytest.raises(
        InputError, match=r"^Trainer: model\.lora\.path is for a model that is loaded by name; put"
    ):
        Trainer(model, settings, ROWS, processing_class=tokenizer)


def test_a_generator_is_read_once_and_all_of_an_eval_dataset_is_evaluated(place):
    model, tokenizer = loaded()
    held_out = [{"prompt": f"city riga hour {n}"} for n in ["one", "two", "three"] * 40]
    made = Trainer(
        model, TrainingConfig(output_dir="r", **SETTINGS), (row for row in ROWS), iter(held_out), tokenizer,
        console=quiet(),
    )  # fmt: skip
    assert len(made.datasets.train) == len(ROWS)
    assert made.config.data.evaluation_count == 120


def test_a_stream_trains_as_its_first_rows_do_and_goes_on_from_a_stop_to_the_bit(place):
    """3 steps of 2 prompts take 6 rows: of a stream without an end no more are read, on any start."""

    def endless(first="city lyon day"):
        # What the tiny models have words for.
        days = ("monday", "tuesday", "friday", "sunday", "thursday", "saturday", "wednesday")
        yield from ({"prompt": f"{first} {day}"} for day in days * 10**6)

    stream = IterableDataset.from_generator(endless)
    whole = trainer("whole", rows=list(stream.take(6)))
    whole.train()
    stopped = trainer("stream", rows=stream, callbacks=[Watching(stop_at=2)])
    assert len(stopped.datasets.train) == 6
    assert stopped.datasets.train[0].notes == (
        "train_dataset: the first 6 rows of a stream, which are all that is read of it",
    )
    with pytest.raises(StoppedError):
        stopped.train()
    other = IterableDataset.from_generator(endless, gen_kwargs={"first": "city riga day"})
    with pytest.raises(InputError, match="data: "):
        trainer("stream", rows=other).train(resume_from_checkpoint=True)
    trainer("stream", rows=stream).train(resume_from_checkpoint=True)
    assert numbers("stream") == numbers("whole")


def test_what_a_run_stands_on_is_its_tokenizer_too(place):

    first = trainer()
    first.train()
    other = trainer()
    other.processing_class.chat_template = "{{ messages }}"
    with pytest.raises(InputError, match="tokenizer: "):
        other.train(resume_from_checkpoint=True)


def test_a_policy_loss_that_returns_something_else_is_named(place, monkeypatch):
    monkeypatch.syspath_prepend(place)
    Path("own_loss.py").write_text(
        "def bare(logprobs, old, advantages, mask):\n    return -advantages * logprobs\n"
    )
    made = trainer(loss="own_loss.bare")
    with pytest.raises(
        SignalError, match=r"policy loss 'own_loss.bare' returned Tensor; it must return a PolicyLoss"
    ):
        made.train()


def test_the_config_of_a_run_on_rows_in_memory_says_so_when_it_is_used_again(place):
    trainer().train()
    with pytest.raises(InputError, match="<train_dataset> was in the memory of a Python program"):
        train("objects/config.yaml", ["run.directory=again"], console=quiet())


def test_a_signal_of_a_notebook_is_part_of_what_a_run_stands_on(place):
    module = sys.modules["__main__"]
    source = "def own(evidence):\n    return evidence.rollout.lengths.float()\n"
    Path("cell.py").write_text(source)
    exec(compile(source, "cell.py", "exec"), module.__dict__)
    model, tokenizer = loaded()
    made = Trainer(
        model, TrainingConfig(output_dir="r", **SETTINGS), ROWS, processing_class=tokenizer, console=quiet(),
        reward=[Term("__main__.own", standardise="none")],
    )  # fmt: skip
    made.train()
    assert "code of __main__.own" in json.loads(Path("r/run.json").read_text())["identity"]
