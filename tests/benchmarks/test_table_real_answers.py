"""Answers of the table's models, written by a tiny chat model and measured from what is kept."""

import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import table_real_answers as keeping
from cagsr.config import Config
from cagsr.tasks import TASKS
from chat_models import chat_model, chat_tokenizer

ROWS = [
    {"prompt": [{"role": "user", "content": "city lyon , food : french"}], "slots": [["food", "French"]]},
    {"prompt": [{"role": "user", "content": "name : The Vaults"}], "slots": [["name", "The Vaults"]]},
]
E2E = TASKS["restaurants"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat")
    chat_model().save_pretrained(directory)
    chat_tokenizer().save_pretrained(directory)
    (directory / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(directory)


def config(model: str) -> Config:
    small = [f"data.source={model}/asked.jsonl", "sampling.max_new_tokens=5", "reward.preset=length"]
    return Config.load(None, [f"model.name={model}", *small])


def test_answers_are_kept_for_their_prompts_and_their_length(tmp_path, model):
    asked, path = [row["prompt"] for row in ROWS], tmp_path / "made" / "answers.json"
    assert keeping.kept_answers(path, asked, 5) is None
    kept = keeping.answer_greedily(path, config(model), model, asked)
    assert [len(texts) for texts in kept["responses"]] == [1, 1]
    assert all(1 <= tokens <= 5 for [tokens] in kept["tokens"])
    assert keeping.kept_answers(path, asked, 5) == kept
    assert keeping.kept_answers(path, asked, 6) is None
    assert keeping.kept_answers(path, asked[::-1], 5) is None


def test_the_best_of_the_candidates_is_the_one_of_the_highest_reward(tmp_path, model):
    asked = [row["prompt"] for row in ROWS]
    kept = keeping.sample_candidates(
        tmp_path / "answers.json", config(model), model, asked, 3, Console(quiet=True)
    )
    assert np.shape(kept["tokens"]) == (2, keeping.CANDIDATES)
    assert kept["reward"] == "length"
    assert kept["chosen"] == [int(np.argmax(tokens)) for tokens in kept["tokens"]]


def test_one_of_several_is_measured_against_the_plain_prompt_of_its_row():
    kept = {
        "responses": [["French food.", "Italian food in Bern."], ["", "The Vaults, The Vaults"]],
        "tokens": [[3, 5], [1, 7]],
        "finished": [[True, False], [True, True]],
        "repeated": [[0.0, 0.5], [0.0, 0.25]],
        "relevance": [[0.1, 0.2], [0.3, 0.4]],
    }
    rows = [{**row, "references": ["French food."]} for row in ROWS]
    first = keeping.values_of(kept, rows, E2E)
    assert first["slot_error_rate"].tolist() == [0, 1]
    assert first["rouge_l"].tolist() == [1, 0]
    second = keeping.values_of(kept, rows, E2E, chosen=[1, 1])
    assert second["wrong_values"].tolist() == [1, 0]
    assert second["foreign_names"].tolist() == [1, 0]  # Bern; "Italian" begins a sentence
    assert second["length"].tolist() == [5, 7]
    assert second["finished"].tolist() == [0, 1]
    assert second["relevance"].tolist() == [0.2, 0.4]
    assert keeping.by_checker(kept, rows, E2E) == [0, 1]


def test_relevance_is_computed_once_and_kept(tmp_path, monkeypatch):
    class Counted:
        def __init__(self, name):
            pass

        def __call__(self, prompts, responses):
            assert prompts == ("city lyon , food : french",) * 2 + ("name : The Vaults",) * 2
            return np.array([len(text) / 10 for text in responses])

    monkeypatch.setattr(keeping, "Relevance", Counted)
    monkeypatch.setattr(keeping, "find_spec", lambda name: name)
    path = tmp_path / "answers.json"
    kept = keeping.with_relevance(path, {"responses": [["a", "bb"], ["", "dddd"]]}, ROWS)
    assert kept["relevance"] == [[0.1, 0.2], [0, 0.4]]
    monkeypatch.setattr(keeping, "find_spec", lambda name: None)
    assert keeping.with_relevance(path, kept, ROWS) is kept
    assert keeping.with_relevance(path, {"responses": [["a"]]}, ROWS) == {"responses": [["a"]]}
