"""`Trainer`: objects in, the run of the command line out."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, TrainerCallback

import tiny
from cagsr import Config, InputError, Term, Trainer, TrainingConfig, train
from cagsr.errors import StoppedError

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
        {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")}
        for row in rows
    ]


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("as_dataset", [True, False])
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
    assert trainer().train(resume_from_checkpoint=True) == first
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
    assert ("end", 3) in watching.events


def test_a_callback_stops_a_run_which_can_be_resumed_to_the_same_numbers(place):
    trainer("whole").train()
    with pytest.raises(StoppedError, match="after step 2 of 3; everything is saved"):
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
    with pytest.raises(InputError, match="holds no model yet; train first"):
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
        ({"num_generations": 1}, "grpo compares the candidates of a prompt"),
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
