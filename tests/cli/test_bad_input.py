"""Bad input: one message that says what, where and how to mend it, exit 2, no traceback, and early.

The rows of the table in the project's promises, as far as a training run can meet them. "Early" is before the
model loads: `load_model` fails the test when it is reached.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    CLIPTextConfig,
    CLIPTextModel,
    MambaConfig,
    MambaForCausalLM,
)

from cagsr.models import load_policy


@pytest.fixture
def early(monkeypatch):
    def reached(*_, **__):
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(load_policy, "load_model", reached)


def refused(outcome, *parts):
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: "), outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err, outcome.err


# The config and the disk: before the model ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no.yaml"], "no.yaml"),
        (["train.learing_rate=1"], "override train.learing_rate: unknown key 'learing_rate'; did you mean 'learning_"),
        (["train.learning_rate=-1"], "override train.learning_rate: got -1, expected a number above 0, at most 1"),
        (["train.learning_rate=.nan"], "override train.learning_rate"),
        (["train.steps=many"], 'override train.steps: got "many", expected an integer'),
        (["train.steps"], "override 'train.steps' is not of the form section.key=value"),
        (["reward.terms=[{signal: covrage}]"], "unknown signal 'covrage'; did you mean 'coverage'?"),
        (["reward.terms=[{signal: focus, options: {directon: x}}]"], "no option 'directon'; did you mean 'direction'?"),
        (["reward.terms=[{signal: repetition, options: {n: many}}]"], "signal 'repetition': option 'n' is 'many'"),
        (["reward.preset=robst"], "unknown preset 'robst'; did you mean 'robust'?"),
        (["data.checker=slotz"], "data.checker: no checker 'slotz'; did you mean 'slots'?"),
        (["reward.terms=[{signal: nosuchmodule.f}]"], "cannot import 'nosuchmodule'"),
        (["model.learning_rate=0.1"], "unknown key 'learning_rate' in model; it belongs to train or sft"),
        (["data.checker=.a.b"], "data.checker: no checker '.a.b' (TypeError: "),
        (["data.checker=os.path"], "data.checker: os.path is of type module, which has no methods check and quality"),
        (["reward.salience={kind: span, pattern: '['}"], "reward.salience.pattern: '[' is no regular expression"),
        (["run.directory=" + "x" * 300], "File name too long; choose another directory"),
        (["train.schedule=a\u202eb"], r'override train.schedule: got "a\u202eb", expected one of constant'),
        (["train.schedule=\x1b[2J"], "override train.schedule value:1 broken YAML: character U+001B is not allowed"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_config_is_said_early(train, early, arguments, message):
    refused(train(*arguments), message)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.steps=3"], "--set: keys take no dashes and no --set; write section.key=value"),
        (["--train.steps=3"], "--train.steps=3: keys take no dashes"),
        (["my.yaml"], "override 'my.yaml' is not of the form section.key=value; a file is given by --config"),
    ],
)
def test_a_setting_spelt_as_other_programs_do_is_answered_by_ours(train, early, arguments, message):
    refused(train(*arguments), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data.task: slots\n",
            "cfg.yaml:1 unknown key 'data.task': in a file, 'task' stands below 'data', indented",
        ),
        ("data:\n  task:slots\n", "data: got \"task:slots\"; write a space behind the colon, 'task: slots'"),
    ],
)
def test_yaml_that_is_nearly_right_is_answered_by_what_is(cagsr, early, text, message):
    Path("cfg.yaml").write_text(text)
    refused(cagsr("train", "--config", "cfg.yaml"), message)


def test_a_model_directory_without_a_tokenizer_says_so(train, models, tmp_path):
    directory = shutil.copytree(models / "llama", tmp_path / "bare")
    for file in directory.glob("*token*"):
        file.unlink()
    refused(
        train(model=directory), "has no tokenizer (tokenizer.json); save that of the model it was made from"
    )


def test_a_mistake_in_a_file_has_its_line(cagsr, early):
    Path("cfg.yaml").write_text(
        "data:\n  task: slots\ntrain:\n  learing_rate: 1.0e-4\n  steps: 3\n  steps: 4\n"
    )
    refused(cagsr("train", "--config", "cfg.yaml"), "cfg.yaml:6", "duplicate key 'steps'")
    Path("cfg.yaml").write_text("data:\n  task: slots\ntrain:\n  learing_rate: 1.0e-4\n")
    refused(
        cagsr("train", "-c", "cfg.yaml"),
        "cfg.yaml:4 unknown key 'learing_rate'; did you mean 'learning_rate'?",
    )


def test_the_oracle_without_a_checker_is_refused_early(train, early, rows):
    source = rows("p.jsonl", {"prompt": "city lyon"})
    refused(
        train(f"data.source={source}", "reward.preset=oracle", task=None),
        "signal 'oracle' is the task's own checker",
    )


def test_a_missing_data_file_is_said_early(train, early):
    refused(train("data.source=none.jsonl", task=None), "data.source: no such file 'none.jsonl'")


def test_an_output_path_that_is_a_file_is_said_early_and_stays(train, early):
    Path("run").write_text("mine")
    refused(train(), "run.directory: run is a file; choose another directory")
    assert Path("run").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_directory_is_said_early(train, early, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(train("run.directory=locked/run"), "run.directory: cannot write in", "locked")


def test_a_disk_without_room_is_said_early_with_exit_4(train, early, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cagsr.config.paths.tempfile.TemporaryFile", full)
    outcome = train()
    assert (outcome.code, outcome.err) == (
        4,
        "error: run.directory: no space left for run; free some and retry\n",
    )


def test_the_directory_of_another_run_is_said_early(train, monkeypatch):
    assert train("train.steps=1").code == 0
    identity = json.loads(Path("run/run.json").read_text())["id"]
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    monkeypatch.setattr(load_policy, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    refused(train(), f"run belongs to run {identity} (step 1). Use --resume or another directory.")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_directory_with_files_of_no_run_is_said_early(train, early):
    Path("run").mkdir()
    Path("run/thesis.tex").write_text("mine")
    refused(train(), "run holds files of no run (thesis.tex). Choose another directory.")


# The data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "  "}, "p.jsonl row 2: prompt is empty. Remove it or pass --skip-invalid."),
        ({"prompt": None}, "p.jsonl row 2: prompt must be text, got null."),
        ({"prompt": 7}, "p.jsonl row 2: prompt must be text, got 7."),
        ({"prompt": "@ @"}, "p.jsonl row 2: no content tokens"),
        ({"prompt": "</s>"}, "p.jsonl row 2: no content tokens"),
        ({"prompt": "city \ud800"}, "p.jsonl row 2: prompt holds half of a surrogate pair"),
        ({"text": "city"}, "p.jsonl row 2: no 'prompt'"),
        ("{bad", "p.jsonl row 2: invalid JSON at column 2"),
        ({"prompt": "day " * 61}, "p.jsonl row 2: 61 prompt + 7 new tokens > 64 context. Set data.max_prompt_tokens"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(train, rows, row, message):
    source = rows("p.jsonl", {"prompt": "city lyon"}, row)
    refused(train(f"data.source={source}", task=None, model="llama"), message)
    assert not Path("run").exists()


@pytest.mark.parametrize("asked", ["--skip-invalid", "data.skip_invalid=true"])
def test_skipped_rows_are_counted_and_listed(train, rows, asked):
    source = rows("p.jsonl", {"prompt": "city lyon"}, *[{"prompt": ""}] * 12, {"prompt": "day monday"})
    outcome = train(f"data.source={source}", asked, task=None)
    assert outcome.code == 0, outcome.err
    lines = [
        "train prompts: 2 of 14 rows used; 12 invalid dropped (first: p.jsonl row 2:\n  prompt is empty).",
        *(f"warning: dropped p.jsonl row {row}: prompt is empty." for row in range(2, 12)),
        "warning: ... and 2 more",
    ]
    assert "\n".join(lines) in outcome.out


@pytest.mark.parametrize("command", ["train", "sft", "eval", "compare", "calibrate", "probe", "score"])
def test_every_command_that_reads_data_can_skip_what_is_invalid(cagsr, command):
    assert "--skip-invalid" in " ".join(cagsr(command, "--help").out.split())


def test_thirty_one_of_thirty_two_rows_are_duplicates_and_said_to_be(train, rows):
    source = rows("p.jsonl", *[{"prompt": "city lyon", "reference": "lyon"}] * 32)
    outcome = train(f"data.source={source}", task=None)
    assert outcome.code == 0, outcome.err
    assert "warning: 31 of 32 rows are duplicates\n" in outcome.out


def test_references_of_one_prompt_are_no_duplicates(train, rows):
    source = rows("p.jsonl", *[{"prompt": "city lyon", "reference": str(row)} for row in range(32)])
    outcome = train(f"data.source={source}", task=None)
    assert outcome.code == 0, outcome.err
    assert "1 of 32 rows used; 31 repeat the prompt of an earlier row, dropped." in " ".join(
        outcome.out.split()
    )
    assert "duplicates" not in outcome.out


BAD = {"prompt": None, "response": "x", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "t5", "--split", "train"],
        ["calibrate", "model.name=t5"],
        ["probe", "model.name=t5", "sampling.candidates=2"],
        ["score", "p.jsonl", "model.name=t5"],
        ["compare", "model.name=t5", "data.evaluation_source=p.jsonl"],
    ],
)
def test_commands_find_a_bad_row_before_any_model_is_loaded(cagsr, early, rows, command):
    source = rows("p.jsonl", {**BAD, "prompt": "city lyon"}, BAD)
    refused(
        cagsr(*command, f"data.source={source}"),
        "p.jsonl row 2: prompt must be text, got null. Remove it or pass --skip-invalid.",
    )


def test_responses_that_end_at_once_are_counted_and_warned_of(train, variant):
    everything = list(range(3, 127))
    model = variant(
        "llama", generation_config={"eos_token_id": everything}, config={"eos_token_id": everything}
    )
    outcome = train("train.steps=1", model=model)
    assert outcome.code == 0, outcome.err
    step, *_ = [
        row for row in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()) if "empty" in row
    ]
    assert step["empty"] > 0.5
    assert f"step 1: {step['empty']:.0%} of the responses are empty" in " ".join(outcome.out.split())


@pytest.mark.parametrize("lines", [[], [{"prompt": ""}]])
def test_a_data_set_without_a_usable_row_is_never_trained_on(train, rows, lines):
    source = rows("p.jsonl", *lines)
    outcome = train(f"data.source={source}", "data.skip_invalid=true", task=None)
    refused(outcome, "none of 1 rows can be used" if lines else "the data set is empty: no rows to use")


def test_a_wrong_column_gets_a_suggestion(train, rows):
    source = rows("p.jsonl", {"text": "city lyon", "summary": "lyon"})
    refused(
        train(f"data.source={source}", task=None),
        "no 'prompt' column; found 'text', 'summary'. Did you mean data.prompt_column: text?",
    )


def test_duplicates_and_prompts_without_content_words_are_counted(train, rows):
    source = rows("p.jsonl", *[{"prompt": "city lyon"}] * 3, {"prompt": "the"}, {"prompt": "is"})
    outcome = train(f"data.source={source}", task=None)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "3 of 5 rows used; 2 repeat the prompt of an earlier row, dropped; 2 of 5 rows are dupl" in said
    assert "2 of 3 prompts (67%) have no content token, so no response can cover them" in said


NOWHERE = ("reward.salience.kind=span", "reward.salience.start=<question>")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "run.directory=run"],
        ["probe", "data.evaluation_source=p.jsonl"],
        ["calibrate", "--output", "w.yaml"],
        ["score", "p.jsonl"],
        ["eval", "base=t5", "data.evaluation_source=p.jsonl"],
    ],
)
def test_a_span_that_is_in_no_prompt_is_refused_by_every_command(cagsr, models, rows, command, small):
    written = [{"prompt": f"city lyon day {day}", "response": "tea"} for day in ("monday", "friday")]
    source = rows("p.jsonl", *written)
    command = [str(models / "t5").join(["base=", ""]) if word == "base=t5" else word for word in command]
    model = [] if command[0] == "eval" else [f"model.name={models / 't5'}"]
    refused(
        cagsr(*command, *small, *model, f"data.source={source}", *NOWHERE),
        "salience span: none of 2 prompts has a token that counts, so every response would cover nothing. Correct its "
        "start, end or pattern; the first prompt is 'city lyon day monday'",
    )
    assert not Path("run/checkpoints").exists()


def test_a_span_that_some_prompts_lack_is_counted(train, rows):
    source = rows(
        "p.jsonl", {"prompt": "say <question> city lyon"}, {"prompt": "city lyon"}, {"prompt": "tea"}
    )
    outcome = train(f"data.source={source}", *NOWHERE, task=None)
    assert outcome.code == 0, outcome.err
    assert "2 of 3 prompts (67%) have no content token" in " ".join(outcome.out.split())


def test_conversations_need_a_chat_template(train, rows):
    source = rows("p.jsonl", {"messages": [{"role": "user", "content": "city lyon"}]})
    refused(train(f"data.source={source}", task=None), "has no chat template, which conversational data need")


# The model's generation config -------------------------------------------------------------------------------

PENALTY = {"generation_config": {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3}}


@pytest.mark.parametrize("command", ["train", "eval", "probe", "calibrate"])
def test_a_penalty_is_refused_by_name_and_left_out_by_one_line(cagsr, variant, command, small):
    model = variant("llama", **PENALTY)
    given = {
        "train": ["train", f"model.name={model}", "run.directory=run"],
        "eval": ["eval", f"base={model}"],
        "probe": ["probe", f"model.name={model}", "--prompts=3"],
        "calibrate": ["calibrate", f"model.name={model}", "--output", "w.yaml"],
    }[command]
    names = "[repetition_penalty, no_repeat_ngram_size]"
    refused(cagsr(*given, *small, "data.task=slots"), f"sampling.ignore_generation_config: {names}")
    outcome = cagsr(*given, *small, "data.task=slots", f"sampling.ignore_generation_config={names}")
    assert outcome.code in (0, 1) if command == "probe" else outcome.code == 0, outcome.err


def test_scoring_does_not_sample_and_needs_no_such_line(cagsr, variant, rows, small):
    source = rows("p.jsonl", {"prompt": "city lyon", "response": "tea"})
    assert cagsr("score", source, f"model.name={variant('llama', **PENALTY)}", *small).code == 0


def test_weights_in_the_spread_of_a_single_response_are_refused(cagsr, models, small):
    alone = ("sampling.candidates=1", "algorithm.name=ppo", "reward.preset=coverage", "--output", "w.yaml")
    outcome = cagsr("calibrate", *small, *alone, f"model.name={models / 't5'}", "data.task=slots")
    refused(outcome, "in the spread of a prompt's responses: set sampling.candidates to 2 or more")


# The model -------------------------------------------------------------------------------------------------


def test_a_missing_model_directory_is_said(train):
    refused(
        train(model=Path("runs/nowhere")),
        "model.name: no directory 'runs/nowhere' here, and not loaded from the hub",
    )


def save(directory, model, models):
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(models / "llama").save_pretrained(directory)
    return directory


SHAPE = {"vocab_size": 127, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0, "eos_token_id": 1}
HEADS = SHAPE | {"num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BertForMaskedLM(BertConfig(**HEADS)), "cannot generate; needs a causal or encoder-decoder LM."),
        (lambda: CLIPTextModel(CLIPTextConfig(**HEADS)), "cannot generate, or not as causal; needs"),
        (lambda: MambaForCausalLM(MambaConfig(**SHAPE, state_size=4)), "has no attention that transformers'"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_trained_is_refused_plainly(train, models, make, message, tmp_path):
    directory = save(tmp_path / "odd-model", make(), models)
    refused(train(model=directory), "odd-model", message)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("falcon", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}, "(falcon) computes"),
        ("gptj", {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, "(gptj) computes attention in classes"),
        ("gemma2", {**HEADS, "num_key_value_heads": 2, "head_dim": 8}, "softcap"),
    ],
)  # fmt: skip
def test_attention_that_cannot_be_read_is_refused_plainly(train, models, name, shape, message, tmp_path):
    config = AutoConfig.for_model(name, **{"vocab_size": 127, "pad_token_id": 0, "eos_token_id": 1, **shape})
    directory = save(tmp_path / "odd-model", AutoModelForCausalLM.from_config(config), models)
    refused(train(model=directory), message)


def test_no_end_of_sequence_is_named(train, variant):
    model = variant("llama", config={"eos_token_id": None}, generation_config={"eos_token_id": None})
    tokenizer = model / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text())
    del settings["eos_token"]
    tokenizer.write_text(json.dumps(settings))
    refused(train(model=model), "name no end-of-sequence token", "Set eos_token in the tokenizer's files.")


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_tokenizer_without_padding_works(train, variant, name):
    model = variant(name, config={"pad_token_id": None}, generation_config={"pad_token_id": None})
    tokenizer = model / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text())
    del settings["pad_token"]
    tokenizer.write_text(json.dumps(settings))
    outcome = train(model=model)
    assert outcome.code == 0, outcome.err


def test_a_tokenizer_larger_than_the_model_is_named(train, variant):
    model = variant("llama")
    path = model / "tokenizer.json"
    words = json.loads(path.read_text())
    size = len(words["model"]["vocab"])
    words["model"]["vocab"] |= {f"new{number}": size + number for number in range(7)}
    path.write_text(json.dumps(words))
    refused(train(model=model), f"the tokenizer knows {size + 7} tokens and the model embeds {size}")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", None, "the weights in"),
        ("model.safetensors", b"garbage!", "the weights in"),
        ("config.json", b"{", "cannot be loaded"),
        ("tokenizer.json", None, "the tokenizer in"),
    ],
)
def test_a_damaged_model_directory_is_named(train, variant, file, content, message):
    model = variant("llama")
    if content is None:
        (model / file).unlink()
    else:
        (model / file).write_bytes(content)
    refused(train(model=model), "model.name: ", message, "cannot be loaded: ")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 3, "9 weights that config.json asks for are not in the checkpoint (first: model.layers"),
        ("intermediate_size", 40, "6 weights that config.json asks for have other shapes in the checkpoint"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_config_are_never_drawn_at_random(train, variant, key, value, message):
    refused(train(model=variant("llama", config={key: value})), message)


def test_weights_only_in_pickle_files_are_not_loaded(train, variant):
    model = variant("llama")
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    refused(train(model=model), "the weights in", "model.safetensors")


def test_an_adapter_of_another_base_is_named(train, models, tmp_path):
    assert train("model.lora.r=2", "train.steps=1", model="llama").code == 0
    adapter = tmp_path / "run/model/adapter_config.json"
    settings = json.loads(adapter.read_text())
    wide = shutil.copytree(models / "llama", tmp_path / "wide")
    config = AutoConfig.from_pretrained(wide, intermediate_size=40)
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    for base, message in (
        (wide, "is not the base that the LoRA adapter run/model was trained on"),
        (wide, "does not fit its base"),
        (tmp_path / "gone", "the base of the LoRA adapter run/model is missing"),
    ):
        adapter.write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
        refused(train("run.directory=other", model=Path("run/model")), "run/model", message)
        adapter.with_name("base.json").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward.layers=[7]"], "has no readable attention in layers [7]; choose from 0, 1."),
        (["model.lora.target_modules=[nosuch]"], "model.lora.target_modules: "),
    ],
)
def test_layers_and_modules_that_are_not_there_are_named(train, arguments, message):
    refused(train(*arguments), message)
