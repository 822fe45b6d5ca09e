"""`cagsr plan`: the table, the last line, JSON, and what is refused where it stands."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from transformers import BioGptConfig, Lfm2Config, LlamaConfig, MistralConfig, T5Config

from cagsr.config import Config
from cagsr.planning.passes import Work
from cagsr.planning.plan import Phase, Plan
from cagsr.planning.table import show

YAML = """
model:
  name: shape
  dtype: bfloat16
  lora: {r: 3}
data:
  source: nowhere.jsonl
  max_prompt_tokens: 11
sampling:
  candidates: 3
  max_new_tokens: 7
reward:
  preset: coverage
train:
  prompts_per_step: 4
  micro_batch: 6
"""


def test_a_config_alone_is_planned_for_by_phase_and_part(cagsr, tmp_path):
    shape = {"hidden_size": 14, "intermediate_size": 29, "num_attention_heads": 7, "num_key_value_heads": 1}
    LlamaConfig(vocab_size=103, num_hidden_layers=2, **shape).save_pretrained(tmp_path / "shape")
    (tmp_path / "my.yaml").write_text(YAML)
    outcome = cagsr("plan", "--config", "my.yaml", "--processes", "2", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads(outcome.out)
    weights = 2 * (2 * 103 * 14 + 14 + 2 * (14 * 14 * 2 + 14 * 2 * 2 + 3 * 14 * 29 + 2 * 14))
    adapter = 4 * 2 * 3 * (4 * 14 + 2 * (14 + 2) + 3 * (14 + 29))
    update, sampling = report["phases"]["update"], report["phases"]["sampling"]
    assert (update["weights"], update["optimizer moments"]) == ((weights + adapter) // 2, adapter)
    assert sampling["gathered weights"] == weights + adapter  # of the policy: an adapter needs no reference
    together = update.pop("together")
    assert together == sum(update.values())
    assert report["peak"] == {"phase": "update", "bytes": together}
    assert (report["processes"], "reference" in update) == (2, False)


def test_the_table_has_phases_parts_and_in_the_last_line_the_peak():
    phases = (
        Phase("sampling", {"weights": 12_345_000_000}),
        Phase("update", {"weights": 123456, "logits": 2 * 10**12}),
    )
    console = Console(width=80, record=True, file=StringIO())
    given = Config.load(None, ["model.name=shape", "data.source=a.jsonl"])
    show(Plan(phases, Work(2, 3, 11, 7), 2), given, console)
    lines = [line.strip() for line in console.export_text().splitlines() if line.strip()]
    assert lines[0] == "shape, each of 2 processes: weights in shards (FSDP2)"
    assert lines[1].startswith("a pass: 2 prompts of 11 tokens, 3 responses of 7 to each")
    rows = [line.split() for line in lines]
    assert ["GB", "sampling", "update"] in rows
    assert ["weights", "12.3", "0.000"] in rows
    assert ["logits", "2,000"] in rows
    assert ["together", "12.3", "2,000"] in rows
    assert lines[-1] == "peak: 2,000 GB, update; to lower it first: lower train.micro_batch"


def test_mistakes_are_named_where_they_stand(cagsr, tmp_path):
    (tmp_path / "my.yaml").write_text(YAML.replace("micro_batch", "micro_bach"))
    outcome = cagsr("plan", "--config", "my.yaml")
    assert outcome.code == 2
    assert "my.yaml:16 unknown key 'micro_bach'; did you mean 'micro_batch'?" in " ".join(outcome.err.split())
    (tmp_path / "my.yaml").write_text(YAML)
    outcome = cagsr("plan", "--config", "my.yaml", "model.name=missing")
    assert (outcome.code, outcome.out) == (2, "")
    assert "model.name: no directory 'missing' here" in outcome.err
    LlamaConfig(vocab_size=103, hidden_size=14, num_attention_heads=7).save_pretrained(tmp_path / "shape")
    outcome = cagsr("plan", "--config", "my.yaml", "model.load_in_4bit=true")
    assert outcome.code == 2
    assert "cagsr plan: weights in few bits are not counted" in outcome.err
    T5Config(vocab_size=103, d_model=14, num_layers=1).save_pretrained(tmp_path / "shape")
    outcome = cagsr("plan", "--config", "my.yaml")
    assert outcome.code == 2
    assert "cagsr plan: shape is an encoder-decoder, and only causal models are counted." in outcome.err


SHAPE: dict[str, Any] = {
    "vocab_size": 103,
    "hidden_size": 14,
    "num_attention_heads": 7,
    "num_hidden_layers": 2,
}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            LlamaConfig(**SHAPE, max_position_embeddings=17),
            "18 tokens of a prompt and its response, and the context of shape has 17",
        ),
        (
            MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=16),
            "18 tokens go beyond a window of 16",
        ),
        (
            Lfm2Config(**SHAPE, num_key_value_heads=7, layer_types=["conv", "full_attention"]),
            "it mixes tokens outside of attention",
        ),
    ],
    ids=["context", "window", "convolution"],
)
def test_what_training_would_not_do_or_do_otherwise_is_refused(cagsr, tmp_path, shape, message):
    shape.save_pretrained(tmp_path / "shape")
    (tmp_path / "my.yaml").write_text(YAML)
    outcome = cagsr("plan", "--config", "my.yaml")
    assert outcome.code == 2
    assert message in " ".join(outcome.err.split())


def test_a_model_that_names_no_blocks_is_planned_for_too(cagsr, tmp_path):
    BioGptConfig(**SHAPE, intermediate_size=29).save_pretrained(tmp_path / "shape")
    (tmp_path / "my.yaml").write_text(YAML)
    outcome = cagsr("plan", "--config", "my.yaml", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["peak"]["bytes"] > 0


def test_all_weights_in_shards_are_not_sent_to_a_server(cagsr, tmp_path):
    LlamaConfig(**SHAPE).save_pretrained(tmp_path / "shape")
    (tmp_path / "my.yaml").write_text(YAML)
    outcome = cagsr(
        "plan", "--config", "my.yaml", "--processes", "2", "model.lora=null", "model.dtype=float32",
        "sampling.engine=vllm",
    )  # fmt: skip
    assert outcome.code == 2
    assert "vllm takes an adapter from shards, and not all weights" in " ".join(outcome.err.split())
