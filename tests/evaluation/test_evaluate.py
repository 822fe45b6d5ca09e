"""`cagsr eval`: which prompts it takes, and how it judges models of different tokenizers alike."""

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

import tiny
from cagsr.config import Config
from cagsr.data import splits
from cagsr.errors import InputError
from cagsr.evaluation import metrics_from_config as instruments
from cagsr.evaluation.evaluate import evaluate, split_arguments
from cagsr.evaluation.evaluator import read_by
from cagsr.evaluation.tables import comparison_table, difference_lines
from cagsr.models.load import save_model


def config(*overrides):
    return Config.load(None, ["model.name=none", *overrides])


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"city {n}", "part": n}) + "\n" for n in range(40)))
    return f"data.source={path}"


@pytest.mark.parametrize("split", ["heldout", "development"])
def test_training_prompts_are_never_taken_for_evaluation_prompts(source, split):
    with pytest.raises(InputError, match=r"Name data\.holdout_column, data\.evaluation_source or data\.eval"):
        splits.build_rows(config(source), split)
    assert len(splits.build_rows(config(source), "train")) == 40


def test_there_is_evaluation_data_where_some_is_named(source):
    assert not splits.has_evaluation_data(config(source))
    assert splits.has_evaluation_data(config(source, "data.holdout_column=part"))
    assert splits.has_evaluation_data(config(source, "data.evaluation_source=other.jsonl"))
    assert splits.has_evaluation_data(config("data.source=some/hub-name", "data.evaluation_split=test"))
    assert splits.has_evaluation_data(config("data.task=slots"))


def test_prompts_that_chose_best_are_known(source):
    named, kept = (
        config(source, extra) for extra in ("data.evaluation_source=b.jsonl", "data.holdout_column=part")
    )
    assert [splits.chose_best(named, split) for split in ("train", "development", "heldout")] == [
        False,
        True,
        True,
    ]
    assert [splits.chose_best(kept, split) for split in ("train", "development", "heldout")] == [
        False,
        True,
        False,
    ]


def test_a_holdout_column_parts_the_rows(source):
    parts = [
        {row.values["part"] for row in splits.build_rows(config(source, "data.holdout_column=part"), split)}
        for split in ("train", "development", "heldout")
    ]
    assert set.union(*parts) == set(range(40))
    assert sum(map(len, parts)) == 40


def test_a_row_that_cannot_be_parted_is_told_of_where_the_others_are_trained_on(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{bad\n{"prompt": "x", "part": "\\ud800"}\n')
    given = config(f"data.source={path}", "data.holdout_column=part")
    parts = [splits.build_rows(given, split) for split in ("train", "development", "heldout")]
    assert [row.place for row in parts[0] if row.problem] == [f"{path} row 1"]
    assert sum(map(len, parts)) == 2


def test_a_follow_up_column_that_no_row_has_is_said_before_a_model_is_loaded(source):
    given = config(source, "data.holdout_column=part", "metrics.followup_column=prat")
    with pytest.raises(
        InputError, match=r"metrics\.followup_column: no 'prat' column; did you mean 'part'\?"
    ):
        splits.read_rows(given, "heldout")


# The command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of ``t5``, another ``t5b`` and ``llama``; a T5's prompt is a token longer, its end of sequence."""
    root = tmp_path_factory.mktemp("models")
    for name, kind, seed in (("t5", "t5", 0), ("t5b", "t5", 1), ("llama", "llama", 0)):
        save_model(tiny.policy(kind, seed=seed), root / name)
    return {name: str(root / name) for name in ("t5", "t5b", "llama")}


@pytest.fixture
def compare(tmp_path, models):
    """``compare("t5", "llama", "key=value")`` on three prompts of two, three and five words."""
    path = tmp_path / "words.jsonl"
    texts = ("city lyon", "city lyon day", "city lyon day monday tea")
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))

    def run(*arguments, split="heldout", greedy=True):
        names, overrides = split_arguments(arguments)
        source = "source" if split == "train" else "evaluation_source"
        settings = ["data.source=train.jsonl", f"data.{source}={path}", "sampling.max_new_tokens=7"]
        console = Console(file=StringIO(), width=80)
        summary = evaluate(
            config(*settings, "sampling.candidates=3", *overrides),
            {name: models[name] for name in names},
            split,
            greedy,
            console,
        )
        return summary, console.file.getvalue()

    return run


LABEL_FREE = {
    "length", "words", "finished", "repeated_trigrams", "distinct_2", "foreign_names", "reward",
    "signal/knockout", "signal/surprise", "signal/retold", "signal/reference_logprob", "signal/repetition",
    "signal/unfinished",
}  # fmt: skip


@pytest.mark.parametrize("greedy", [True, False])
def test_without_a_checker_the_reward_and_its_signals_are_compared(compare, greedy):
    summary, said = compare("t5", "t5b", "llama", greedy=greedy)
    assert summary["prompts"] == 3
    for metrics in (*summary["systems"].values(), *summary["differences"].values()):
        assert set(metrics) == LABEL_FREE
    assert summary["systems"]["t5"]["reward"]["mean"] == pytest.approx(0)
    moved = {name: summary["systems"][name]["reward"]["mean"] for name in ("t5b", "llama")}
    for name, reward in moved.items():
        assert summary["differences"][f"{name}-t5"]["reward"]["mean"] == pytest.approx(reward)
        assert abs(reward) > 1e-3
    assert "llama, heldout prompts: 3 of 3 rows used." in said
    assert "also used to choose best/" in said


def test_the_reward_is_the_weighted_sum_of_what_the_signals_moved(compare):
    summary, _ = compare(
        "t5",
        "llama",
        "reward.terms=[{signal: coverage, weight: 3.0, standardise: none}, "
        "{signal: length, weight: -0.5, standardise: none}]",
    )
    moved = {name: interval["mean"] for name, interval in summary["differences"]["llama-t5"].items()}
    assert moved["reward"] == pytest.approx(3 * moved["signal/coverage"] - 0.5 * moved["signal/length"])
    assert moved["signal/coverage"] != 0


def test_models_are_paired_on_the_prompts_that_all_of_them_read(compare):
    limit = ["data.max_prompt_tokens=3", "data.overlong=drop"]
    for order in (("t5", "llama"), ("llama", "t5")):
        summary, said = compare(*order, *limit)
        assert summary["prompts"] == 1
        assert "t5, heldout prompts: 1 of 3 rows used; 2 too long dropped." in said
        assert "llama, heldout prompts: 2 of 3 rows used; 1 too long dropped." in said
    alone, _ = compare("llama", *limit)
    assert alone["prompts"] == 2


def test_a_model_among_others_has_the_numbers_of_the_prompts_it_shares(compare):
    limit = ["data.max_prompt_tokens=3", "data.overlong=drop"]
    shared, _ = compare("llama", "t5", *limit)
    shortest, _ = compare("llama", "data.max_prompt_tokens=2", "data.overlong=drop")
    for metric in ("length", "signal/knockout", "finished"):
        assert shared["systems"]["llama"][metric] == shortest["systems"]["llama"][metric]


def test_models_without_a_common_prompt_are_refused(compare, monkeypatch):
    built = splits.build_prompts

    def apart(config, policy, split, **options):
        prompts, report = built(config, policy, split, **options)
        return (prompts[:1] if policy.readable.kind == "causal" else prompts[1:]), report

    monkeypatch.setattr(splits, "build_prompts", apart)
    with pytest.raises(InputError, match="t5 and llama have no prompt in common"):
        compare("llama", "t5")


def test_prompts_trained_on_are_taken_when_asked_for(compare):
    summary, said = compare("t5", "data.evaluation_count=2", split="train")
    assert (summary["split"], summary["prompts"]) == ("train", 2)
    assert "best/" not in said


class Opinionated:
    """Rates a response by whether it is the longer of two it has heard of, and is at a loss every third time."""

    def __init__(self, *arguments):
        self.asked = 0

    def __call__(self, messages, max_tokens):
        self.asked += 1
        pairwise = "response A" in messages[0]["content"]
        return "A" if pairwise else ["4", "2", "hm"][self.asked % 3]

    def describe(self):
        return {"name": "opinionated"}


def test_what_the_config_asks_for_is_measured_and_named(compare, monkeypatch, tmp_path):
    monkeypatch.setattr(instruments, "Endpoint", Opinionated)
    ratings = tmp_path / "ratings.jsonl"
    ratings.write_text(
        json.dumps(
            {"system": "t5", "prompt": "city lyon", "response": "unseen", "rater": "ann"}
            | {"relevance": 1, "coherence": 1, "overall": 1}
        )
    )
    summary, _ = compare(
        "t5",
        "llama",
        "metrics.relevance_model=minilm",
        "metrics.rouge=true",
        "metrics.perplexity_model=base",
        "metrics.judge={endpoint: http://x/v1, model: wise, pairwise: true}",
        f"metrics.ratings={ratings}",
    )
    for metrics in (*summary["systems"].values(), *summary["differences"].values()):
        assert set(metrics) == LABEL_FREE | {"relevance", "judge"}
    assert summary["measured_by"]["not_measured"] == {
        "exact_match": "3 of 3 responses have no reference",
        "rouge_l": "3 of 3 responses have no reference",
        "followup_nll": "3 of 3 prompts have no text as 'reference'",
    }
    # Asked in turn: 2, hm, 4 of the first model and of the other; so two prompts have an opinion of both.
    assert summary["systems"]["t5"]["judge"]["mean"] == 3
    counts = {"judge_asked": 3, "judge_failures": 1, "human_ratings": 0}
    assert summary["opinions"]["t5"] == counts | {"human_ratings_of_other_responses": 1}
    # The judge prefers whatever stands first: every pair that differs is a tie.
    preference = summary["preferences"]["llama-t5"]
    assert (preference["wins"], preference["ties"], preference["losses"]) == (0, 3, 0)
    assert preference["disagreements"] > 0
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("argument", "is_override"),
    [
        ("flan-t5-1.1=PATH", False),
        ("train.steps=3", True),
        ("runs/e2e.1/model", False),
        ("a=runs/train.x=1", False),
        ("data.task=slots", True),
    ],
)
def test_only_a_key_of_a_section_is_an_override(argument, is_override):
    assert split_arguments([argument]) == (([], [argument]) if is_override else ([argument], []))


# Another tokenizer


def test_a_response_read_by_another_keeps_its_text_and_how_it_ended():
    writer, reader = tiny.policy("llama"), tiny.policy("t5")
    texts = ["city lyon", "day monday tea", "", "city lyon day monday"]
    rollout = writer.given(tiny.prompts(writer, (3, 5)), texts, limit=4)
    assert rollout.finished.tolist() == [True, True, True, False]
    prompts = tiny.prompts(reader, (4, 6))
    read = read_by(reader, rollout, prompts)
    assert read.prompts == prompts
    assert read.finished.tolist() == rollout.finished.tolist()
    assert read.lengths.tolist() == [3, 4, 1, 4]
    ended = (read.response_ids == reader.eos_ids[0]) & read.response_mask
    assert ended.any(1).tolist() == [True, True, True, False]
    assert reader.decode(read.response_ids, read.response_mask) == texts
    assert torch.equal(read.prompt_ids, reader.collate(prompts)[0])


def test_a_response_is_cut_where_the_observer_has_no_positions_left():
    writer, reader = tiny.policy("t5"), tiny.policy("llama")
    rollout = writer.given(tiny.prompts(writer, (3,)), ["tea " * 40], limit=50)
    prompts = tiny.prompts(reader, (40,))
    assert read_by(reader, rollout, prompts).lengths.tolist() == [64 - 40]


# The table


def summary_of(means):
    metrics = {name: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01} for name, mean in means.items()}
    return {"systems": {"base": metrics, "other": metrics}, "differences": {"other-base": metrics}}


def test_the_table_shows_every_metric_and_slots_first():
    slots = ("slot_error_rate", "coverage", "perfect", "clean", "hallucination", "repetition", "length")
    extra = {"finished": 1.0, "reward": -12.5, "signal/reference_logprob": -3.25, "signal/my.own": 0.5}
    summary = summary_of(
        {
            **extra,
            "signal/unfinished": -0.1,
            "signal/focus": -1e-9,
            "signal/mass": 0.2,
            **dict.fromkeys(slots, 0.5),
        }
    )
    console = Console(file=StringIO(), width=80)
    console.print(comparison_table(summary, "slots"))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert shown.index("invented") < shown.index("reward") < shown.index("mass")
    assert "-0.000" not in shown
    for part in (
        "reference",
        "logprob",
        "0.000",
        "-3.250",
        "-12.5–-12.5",
        "-.110–-.090",
        "own",
        "unfinished",
    ):
        assert part in shown


def test_a_signal_moves_and_a_reward_gets_better():
    summary = summary_of({"signal/mass": 0.2, "length": -3.0, "reward": 0.5, "repeated_trigrams": 0.1})
    verdicts = [line.split()[0] + " " + line.split()[-1] for line in difference_lines(summary, "other-base")]
    assert verdicts == ["length shorter", "reward better", "repeated worse", "mass higher"]
