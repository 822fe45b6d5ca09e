"""The model card names a base only where the hub can have it."""

import pytest
import yaml

from cagsr.config import Config
from cagsr.runs.model_card import model_card, of_whole_model


def front_matter(name: str | None, *overrides: str, form: str = "the whole model") -> dict[str, object]:
    config = Config.load(None, [*overrides] or ["data.task=qa"]).replaced({"model.name": name})
    card = model_card(config.model_dump(mode="json"), 3, None, 11, form)
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("name", ["gpt2", "google/flan-t5-small", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_a_hub_id_is_the_base_model(name):
    assert front_matter(name)["base_model"] == name


@pytest.mark.parametrize(
    "name", [None, "a loaded model", "runs/sft/model", "/models/t5", "../t5", "here/t5", "owner/a--b"]
)
def test_nothing_else_is(name, tmp_path, monkeypatch):
    (tmp_path / "here/t5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert front_matter(name) == {
        "library_name": "transformers",
        "tags": ["cagsr", "reinforcement-learning"],
    }


def test_data_sets_of_the_hub_and_the_kind_of_library_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    sources = "[openai/gsm8k, x.jsonl, saved, {path: someone/chats, weight: null}, shards/*.parquet]"
    found = front_matter(
        "gpt2", f"data.source={sources}", "model.name=gpt2", form="a LoRA adapter; and so on"
    )
    assert found["datasets"] == ["openai/gsm8k", "someone/chats"]
    assert found["library_name"] == "peft"
    memory = front_matter("gpt2", "data.source=<train_dataset>", "model.name=gpt2")
    assert "datasets" not in memory


def test_the_card_of_a_merged_model_says_so_and_keeps_the_rest():
    config = Config.load(None, ["data.source=owner/rows", "model.name=gpt2"])
    card = model_card(
        config.model_dump(mode="json"), 3, {"step": 3, "reward": 0.25}, 11, "a LoRA adapter; on it"
    )
    whole = of_whole_model(card)
    assert yaml.safe_load(whole.split("---\n")[1])["library_name"] == "transformers"
    assert (
        whole.replace("transformers", "peft", 1).replace(
            "- Files: the whole model", "- Files: a LoRA adapter; on it"
        )
        == card
    )
    assert of_whole_model("") == ""


@pytest.mark.parametrize(
    "card",
    [
        "---\nlibrary_name: sentence-transformers\ntags: [mine]\n---\n# Mine\n- Files: see the table\n",
        "# No header\n- Files: see the table\n",
        "---\n: [\n---\n# A header that says nothing\n",
        "---\njust text\n---\n",
    ],
)
def test_a_card_that_cagsr_did_not_write_stays_as_it_is(card):
    assert of_whole_model(card) == card
