"""What a plan puts together: what lasts, what shards take away, what is gathered, and which phase is most."""

import re

import pytest
from transformers import BloomConfig, LlamaConfig

from benchmarks.plan import Case, Even, measure
from cagsr.config import Config
from cagsr.errors import InputError, UnsupportedModelError
from cagsr.planning.passes import Work
from cagsr.planning.plan import Phase, Plan, plan
from cagsr.planning.table import first_to_change

LAYERS = 2
BLOCK = 14 * 14 * 2 + 14 * 2 * 2 + 3 * 14 * 29 + 2 * 14
OUTSIDE = 2 * 103 * 14 + 14


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a config.json and nothing else."""
    directory = tmp_path_factory.mktemp("model")
    shape = {
        "hidden_size": 14,
        "intermediate_size": 29,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
    }
    LlamaConfig(vocab_size=103, num_hidden_layers=LAYERS, **shape).save_pretrained(directory)
    assert [file.name for file in directory.iterdir()] == ["config.json"]
    return directory


def config(model, *settings: str) -> Config:
    given = [
        "data.source=a.jsonl",
        "data.max_prompt_tokens=11",
        "sampling.candidates=3",
        "sampling.max_new_tokens=7",
    ]
    given += ["train.prompts_per_step=4", "train.micro_batch=6", "reward.preset=coverage"]
    return Config.load(None, [f"model.name={model}", *given, *settings])


def test_all_weights_last_twice_with_their_moments(model):
    found = plan(
        config(model, "data.holdout_column=prompt", "sampling.dtype=bfloat16", "data.evaluation_count=5")
    )
    assert [phase.name for phase in found.phases] == ["sampling", "observing", "update", "evaluation"]
    weights = LAYERS * BLOCK + OUTSIDE
    lasting = {"weights": 4 * weights, "reference": 4 * weights, "optimizer moments": 8 * weights}
    lasting["rounded copy that writes"] = 2 * weights
    for phase in found.phases:
        assert lasting.items() <= phase.parts.items()
    assert found.phases[0].parts["keys and values"] == LAYERS * 2 * (4 + 2) * (4 * 11 + 12 * 16)
    assert found.phases[0].total == sum(found.phases[0].parts.values())
    assert found.work == (2, 3, 11, 7)


def test_of_several_processes_each_has_a_shard_and_gathers_a_block_at_a_time(model):
    found = plan(config(model, "train.gather_for_rollouts=false"), processes=2)
    weights = LAYERS * BLOCK + OUTSIDE
    lasting = {"weights": 2 * weights, "reference": 2 * weights, "optimizer moments": 4 * weights}
    for phase in found.phases:
        assert lasting.items() <= phase.parts.items()
    gathered = [phase.parts["gathered weights"] for phase in found.phases]
    assert gathered == [8 * OUTSIDE + 8 * BLOCK, 8 * OUTSIDE + 8 * BLOCK, 4 * OUTSIDE + 12 * BLOCK]


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        (["data.max_prompt_tokens=null"], 1, "data.max_prompt_tokens: cagsr plan reads no data; set it to"),
        (["train.gather_for_rollouts=false"], 1, "train.gather_for_rollouts: false is for weights in shards"),
        (["sampling.dtype=bfloat16"], 2, "sampling.dtype: not with weights in shards"),
        ([], 3, "train.prompts_per_step (4) must be a multiple of processes"),
        (["model.dtype=bfloat16"], 1, "model.dtype: bfloat16 weights round most of AdamW's updates away"),
        (
            ["model.lora={target_modules: [q_prj]}"],
            1,
            "the model has no module 'q_prj'. Did you mean q_proj?",
        ),
    ],
)
def test_what_cannot_be_trained_or_counted_is_refused(model, settings, processes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        plan(config(model, *settings), processes)


def test_a_model_that_takes_no_row_of_prompts_and_responses_is_refused_by_name(tmp_path):
    BloomConfig(vocab_size=103, hidden_size=14, n_layer=1, n_head=7).save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=r"cagsr plan: the passes of a bloom cannot be counted .*ValueError"
    ):
        plan(config(tmp_path))


@pytest.mark.parametrize(
    ("largest", "name", "settings", "first"),
    [
        ("activations", "update", [], "set train.gradient_checkpointing: true"),
        ("activations", "update", ["train.gradient_checkpointing=true"], "lower train.micro_batch"),
        ("logits", "update", [], "lower train.micro_batch"),
        ("keys and values", "sampling", [], "lower train.prompts_per_step or sampling.max_new_tokens"),
        ("rounded copy that writes", "sampling", [], "leave sampling.dtype out"),
        ("gathered weights", "sampling", [], "set train.gather_for_rollouts: false"),
        ("optimizer moments", "update", [], "set model.lora"),
        ("weights", "update", ["model.lora={}"], "set model.dtype: bfloat16"),
        ("weights", "update", ["model.lora={}", "model.dtype=bfloat16"], "more processes (FSDP2) than 2"),
    ],
)
def test_the_setting_to_change_first_is_that_of_the_largest_part(model, largest, name, settings, first):
    phases = Phase("observing", {"weights": 3}), Phase(name, {"gradients": 7, largest: 11})
    assert first_to_change(Plan(phases, Work(2, 3, 11, 7), 2), config(model, *settings)) == first


def test_one_process_whose_frozen_weights_are_short_already_is_told_of_four_bits(model):
    alone = Plan((Phase("update", {"weights": 7}),), Work(2, 3, 11, 7), 1)
    assert first_to_change(alone, config(model, "model.lora={}", "model.dtype=bfloat16")) == (
        "set model.load_in_4bit: true"
    )


def test_a_step_takes_what_was_planned():
    shape = Even(
        layers=5,
        hidden=60,
        heads=6,
        vocabulary=2003,
        prompts=3,
        candidates=5,
        prompt_tokens=31,
        response_tokens=17,
    )
    found = measure(Case(shape, settings=("train.micro_batch=5", "model.lora={r: 3}")))
    assert found["planned"] == pytest.approx(found["allocated"], rel=0.05)
