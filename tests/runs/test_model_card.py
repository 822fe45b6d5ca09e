"""The model card names a base only where the hub can have it."""

import pytest
import yaml

from cagsr.config import Config
from cagsr.runs.model_card import model_card


def front_matter(name: str | None) -> dict[str, object]:
    config = Config.load(None, ["data.task=qa"]).replaced({"model.name": name})
    card = model_card(config.model_dump(mode="json"), 3, None, 11)
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
