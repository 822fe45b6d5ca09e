"""`cagsr compare` from the outside: tiny models, few systems, every file it promises."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cagsr.config import Config
from cagsr.errors import EndpointError
from chat_models import save_assistant
from command_line import Outcome, typed_once

FEW = [
    "data.task=slots",
    "compare.seeds=[0,1]",
    "compare.systems=[no-rl, cagsr-grpo, sft-best, best-of-k, lexical, rlhf, s3ft]",
    "sampling.min_new_tokens=2",
]
"""rlhf has no human pairs here; sft-best imitates, best-of-k only chooses: every kind of recipe but DPO."""


@pytest.fixture(scope="module")
def command(models, small):
    """``command("key=value", ...)``: the arguments of a comparison of these systems, in ``comparison``."""

    def arguments(*more: str) -> list[str]:
        given = [*FEW, f"model.name={models / 't5'}", "compare.directory=comparison"]
        return ["compare", *small, *given, *more]

    return arguments


@pytest.fixture
def compared(cagsr, command, tmp_path):
    """``compared("key=value", ...)``: what the command came to, and its directory."""

    def compare(*arguments: str) -> tuple[Outcome, Path]:
        return cagsr(*command(*arguments)), tmp_path / "comparison"

    return compare


@pytest.fixture(scope="module")
def made(command, tmp_path_factory) -> tuple[Path, Outcome]:
    """A comparison of one seed, started with --resume and --json."""
    place = tmp_path_factory.mktemp("compared")
    outcome = typed_once(place, command("compare.seeds=[0]", "--resume", "--json"))
    assert outcome.code == 0, outcome.err
    return place / "comparison", outcome


@pytest.fixture(scope="module")
def grown(made, command, tmp_path_factory) -> tuple[Outcome, Path]:
    """What a comparison came to that went on with a second seed, and its directory."""
    place = tmp_path_factory.mktemp("grown")
    shutil.copytree(made[0], place / "comparison")
    outcome = typed_once(place, command("--resume", "--json"))
    assert outcome.code == 0, outcome.err
    return outcome, place / "comparison"


@pytest.fixture
def first(made, compared, tmp_path) -> Outcome:
    """What it came to; a copy of its directory is where ``compared`` compares."""
    shutil.copytree(made[0], tmp_path / "comparison")
    return made[1]


def test_a_comparison_writes_a_run_directory_for_every_run_and_one_table(grown):
    outcome, directory = grown
    summary = json.loads(outcome.out)
    assert summary == json.loads((directory / "summary.json").read_text())
    assert list(summary["systems"]) == ["no-rl", "cagsr-grpo", "sft-best", "best-of-k", "lexical", "s3ft"]
    assert summary["not_for_this_data"] == {"rlhf": "no human pairs"}
    assert summary["budget"]["responses"] == 2 * 2 * 3
    for name in ("cagsr-grpo", "lexical", "sft-best"):
        for seed in (0, 1):
            run_directory = directory / name / f"seed-{seed}"
            kept = {entry.name for entry in run_directory.iterdir()}
            assert {"run.json", "config.yaml", "metrics.jsonl", "summary.json", "model"} <= kept
    for place in ("no-rl/seed-0", "best-of-k/seed-0", "best-of-k/seed-1"):  # nothing is trained there
        assert {"run.json", "config.yaml", "summary.json", "responses.jsonl"} <= {
            entry.name for entry in (directory / place).iterdir()
        }
    for name in ("best-of-k", "lexical", "sft-best"):
        about = json.loads((directory / name / "seed-1/run.json").read_text())
        assert {"model", "train.seed", "code of cagsr", "torch"} <= about["identity"].keys()
    assert not (directory / "no-rl" / "seed-1").exists()
    rows = [
        json.loads(line) for line in (directory / "lexical/seed-1/responses.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 2
    assert {"prompt", "response", "slot_error_rate"} <= rows[0].keys()
    written = list(csv.DictReader((directory / "table.csv").read_text().splitlines()))
    assert {row["system"] for row in written} == set(summary["systems"])
    assert (directory / "table.md").read_text().count("| cagsr-grpo |") == 1
    sampled = summary["sampled"]
    assert sampled["no-rl"]["kl"]["mean"] == 0.0
    assert "best-of-k" not in sampled
    assert summary["cost"]["cagsr-grpo"]["generated_tokens"] > 0
    assert summary["cost"]["s3ft"]["labels"] == 4 + 12  # references, and verdicts on all samples


def test_a_used_directory_is_refused(first, compared):
    assert "comparison holds no run yet: --resume starts one." in " ".join(first.err.split())
    again, _ = compared("compare.seeds=[0]")
    assert again.code == 2
    assert "--resume" in again.err


def test_resume_adds_seeds_without_doing_anything_again(made, grown):
    before = {path.relative_to(made[0]): path.read_bytes() for path in made[0].glob("*/seed-0/*.json*")}
    assert before
    after = {path.relative_to(grown[1]): path.read_bytes() for path in grown[1].glob("*/seed-0/*.json*")}
    assert after == before  # with the times that everything took
    assert json.loads((grown[1] / "summary.json").read_text())["seeds"] == [0, 1]


def test_an_estimate_of_the_kl_in_the_loss_is_for_the_systems_that_have_one(compared):
    outcome, directory = compared(
        "compare.seeds=[0]", "compare.systems=[no-rl, cagsr-ppo, lexical]", "algorithm.kl_estimate=k3"
    )
    assert outcome.code == 0, outcome.err
    for name, estimate in (("cagsr-ppo", "k2"), ("lexical", "k3")):
        assert Config.load(directory / name / "seed-0/config.yaml").algorithm.kl_estimate == estimate


def test_resume_with_another_budget_is_refused_by_the_name_of_what_changed(compared):
    assert compared("compare.seeds=[0]", "compare.systems=[no-rl,lexical]")[0].code == 0
    other, _ = compared("compare.seeds=[0]", "train.steps=3", "--resume")
    assert other.code == 2
    assert "train.steps: 3, was 2" in other.err


def test_a_comparison_stopped_between_two_systems_ends_with_the_numbers_of_one_that_was_not(first, compared):
    Path("comparison/lexical/seed-0/result.json").unlink()
    Path("comparison/summary.json").unlink()
    resumed, _ = compared("compare.seeds=[0]", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["systems"] == json.loads(first.out)["systems"]


def test_what_a_run_warned_of_is_said_and_kept_in_the_summary_after_a_resume_too(compared):
    watched = ("compare.seeds=[0]", "compare.systems=[no-rl, lexical]", "watch.kl.limit=1.0e-9")
    first, directory = compared(
        *watched, "watch.kl.patience=1", "algorithm.epochs=2", "train.learning_rate=0.1"
    )
    assert first.code == 0, first.err
    assert "warning: lexical, step 2: kl is" in " ".join(first.out.split())
    summary = json.loads((directory / "summary.json").read_text())
    assert list(summary["warnings"]) == ["lexical"]
    found = summary["warnings"]["lexical"][0]
    assert (found["seed"], found["step"]) == (0, 2)
    again, _ = compared(
        *watched, "watch.kl.patience=1", "algorithm.epochs=2", "train.learning_rate=0.1", "--resume"
    )
    assert again.code == 0, again.err
    assert json.loads((directory / "summary.json").read_text())["warnings"] == summary["warnings"]


class Wise:
    """A judge that reads nothing: A of two, a 4, and every third time it cannot be read."""

    asked = 0

    def __init__(self, url, model, timeout):
        pass

    def __call__(self, messages, max_tokens):
        type(self).asked += 1
        return "A" if "response A" in messages[0]["content"] else ["4", "4", "four"][self.asked % 3]

    def describe(self):
        return {"name": "wise"}


def test_what_a_judge_cannot_be_read_for_is_said_and_which_is_better_is_asked_once(compared, monkeypatch):
    monkeypatch.setattr("cagsr.evaluation.metrics_from_config.Endpoint", Wise)
    judge = "metrics.judge={endpoint: http://x/v1, model: wise, pairwise: true}"
    asked = (judge, "compare.systems=[no-rl, best-of-k]", "compare.seeds=[0]", "data.evaluation_count=5")
    outcome, directory = compared(*asked)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "warning: no-rl: 2 of 5 answers of the judge were no rating from 1 to 5" in said
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["opinion_prompts"] == {"judge": 2}  # of five, those that were read for both systems
    found = summary["preferences"]["best-of-k-no-rl"]
    # A position is no preference: answers that say A in both orders are ties, as are responses that are equal.
    assert (found["wins"], found["ties"], found["losses"], found["mean"]) == (0, 5, 0, 0.5)
    assert "judge prefers to no-rl" in (directory / "table.md").read_text()
    before = Wise.asked
    again, _ = compared(*asked, "--resume")
    assert again.code == 0, again.err
    assert Wise.asked == before
    assert json.loads((directory / "summary.json").read_text())["preferences"] == summary["preferences"]


@pytest.mark.parametrize("fails_after", [0, 7])
def test_a_judge_that_fails_costs_its_metric_alone_and_is_asked_again_when_the_comparison_goes_on(
    compared, monkeypatch, fails_after
):
    class Steady(Wise):
        def __call__(self, messages, max_tokens):
            return "A" if "response A" in messages[0]["content"] else "4"

    class Failing(Steady):
        asked = 0

        def __call__(self, messages, max_tokens):
            if self.asked == fails_after:
                raise EndpointError("metrics.judge: http://x/v1 does not answer")
            self.asked += 1
            return super().__call__(messages, max_tokens)

    monkeypatch.setattr("cagsr.evaluation.metrics_from_config.Endpoint", Failing)
    judge = "metrics.judge={endpoint: http://x/v1, model: wise, pairwise: true}"
    asked = (judge, "compare.systems=[no-rl, best-of-k]", "compare.seeds=[0, 1]")
    outcome, directory = compared(*asked)
    assert outcome.code == 0, outcome.err
    assert "warning: judge is not measured: metrics.judge: http://x/v1 does not answer" in " ".join(
        outcome.out.split()
    )
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["measured_by"]["not_measured"]["judge"] == "metrics.judge: http://x/v1 does not answer"
    assert summary["opinions"]["systems"]["no-rl"] == {}
    assert set(summary["systems"]) == {"no-rl", "best-of-k"}
    monkeypatch.setattr("cagsr.evaluation.metrics_from_config.Endpoint", Steady)
    again, _ = compared(*asked, "--resume")
    assert again.code == 0, again.err
    summary = json.loads((directory / "summary.json").read_text())
    assert "judge" not in summary["measured_by"].get("not_measured", {})
    assert set(summary["opinions"]["systems"]["best-of-k"]) == {"judge"}
    assert set(summary["preferences"]) == {"best-of-k-no-rl"}


def test_an_unknown_system_or_control_is_refused_before_anything_is_written(compared):
    for key in ("compare.systems=[no-rl, cagsr-gpro]", "compare.control=lexcial"):
        outcome, directory = compared(key)
        assert outcome.code == 2
        assert "did you mean" in outcome.err
        assert not directory.exists()


def test_a_start_that_failed_leaves_its_place_free_and_another_run_is_never_moved(compared):
    failed, directory = compared("model.name=nowhere", "compare.seeds=[0]", "compare.systems=[no-rl,lexical]")
    assert failed.code == 2
    assert not directory.exists()
    directory.mkdir()
    (directory / "run.json").write_text('{"id": "7f3a", "identity": {}}')
    refused, _ = compared("compare.seeds=[0]", "compare.systems=[no-rl,lexical]")
    assert refused.code == 2
    assert "belongs to run 7f3a" in refused.err
    assert {entry.name for entry in directory.iterdir()} == {"run.json"}


def test_the_base_is_trained_once_where_the_config_describes_a_new_one(cagsr, small, tmp_path):
    directory = tmp_path / "comparison"
    arguments = [
        *small,
        "data.task=slots",
        "compare.seeds=[0]",
        "compare.systems=[no-rl]",
        f"compare.directory={directory}",
        "sft.scratch.layers=1",
        "sft.scratch.hidden=16",
        "sft.scratch.heads=2",
        "sft.steps=2",
    ]
    outcome = cagsr("compare", *arguments)
    assert outcome.code == 0, outcome.err
    made = (directory / "base/model/model.safetensors").stat().st_mtime_ns
    assert cagsr("compare", *arguments, "--resume", "compare.seeds=[0,1]").code == 0
    assert (directory / "base/model/model.safetensors").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("compare.preferences=missing.jsonl", "missing.jsonl: no such file"),
        ("compare.conventional_reward=rouge", "compare.conventional_reward: unknown signal 'rouge'"),
        ("model.dtype=bfloat16", "model.dtype: bfloat16 weights round most"),
        ("reward.preset=oracel", "did you mean 'oracle'?"),
        ("run.trackers=[no_such_dashboard]", "no_such_dashboard"),
    ],
)
def test_what_can_be_seen_without_a_model_is_refused_before_a_base_is_made(
    cagsr, small, tmp_path, key, message
):
    scratch = ["sft.scratch.layers=1", "sft.steps=2", f"compare.directory={tmp_path / 'comparison'}"]
    outcome = cagsr("compare", *small, "data.task=slots", *scratch, key)
    assert outcome.code == 2
    assert message in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_without_trl_the_systems_that_need_it_are_named_before_a_base_is_made(compared, monkeypatch):
    monkeypatch.setattr("cagsr.experiments.systems.find_spec", lambda name: None)
    refused, directory = compared("compare.systems=[no-rl, synthetic-preference, rlhf]")
    assert refused.code == 2
    assert "compare.systems: for synthetic-preference TRL trains a reward model" in refused.err
    assert "pip install 'trl>=1.16,<2'" in refused.err
    assert not directory.exists()
    others, _ = compared(
        "compare.seeds=[0]", "compare.systems=[no-rl, rlhf]"
    )  # rlhf has no pairs to learn from
    assert others.code == 0, others.err


def test_a_base_that_is_an_adapter_has_reward_models_too_and_the_summary_names_the_weights_of_all(
    compared, train
):
    assert train("model.lora.r=2", "reward.preset=lexical").code == 0
    asked = ["model.name=run/model", "compare.seeds=[0]", "compare.systems=[no-rl, synthetic-preference]"]
    outcome, directory = compared(*asked, "sampling.max_new_tokens=17")
    assert outcome.code == 0, outcome.err
    assert "no comparison with compare.control: lexical is not among compare.systems" in " ".join(
        outcome.out.split()
    )
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["not_for_this_data"] == {}
    assert summary["base_model"]["name"] == "run/model"
    model = summary["reward_models"]["synthetic-preference-seed-0"]
    assert model["name"].endswith("reward-models/synthetic-preference-seed-0")
    assert len(model["sha256"]) == len(summary["base_model"]["sha256"]) == 64


CITIES = ("lyon", "bern", "riga", "graz", "cork", "turin")


def test_a_metric_that_was_asked_for_and_not_measured_is_said_at_every_end(cagsr, small, models, rows):
    rows("train.jsonl", *({"prompt": f"describe city : {city}"} for city in CITIES))
    rows("held.jsonl", *({"prompt": f"describe drink : tea ; city : {city}"} for city in CITIES))
    data = ["data.source=train.jsonl", "data.evaluation_source=held.jsonl", f"model.name={models / 't5'}"]
    asked = ["compare.systems=[no-rl, lexical]", "compare.seeds=[0]", "metrics.rouge=true"]
    for again in ([], ["--resume"]):
        outcome = cagsr("compare", *small, *data, *asked, "compare.directory=comparison", *again)
        assert outcome.code == 0, outcome.err
        said = " ".join(outcome.out.split())
        assert "warning: rouge_l is not measured: 2 of 2 responses have no reference" in said
        assert "warning: intervals over 2 prompts are too narrow" in said


def test_one_held_out_prompt_tells_no_systems_apart(cagsr, small, models, rows, tmp_path):
    rows("train.jsonl", *({"prompt": f"describe city : {city}"} for city in CITIES))
    rows("held.jsonl", {"prompt": "describe drink : tea"})
    data = ["data.source=train.jsonl", "data.evaluation_source=held.jsonl", f"model.name={models / 't5'}"]
    outcome = cagsr("compare", *small, *data, "compare.systems=[no-rl]", "compare.directory=comparison")
    assert outcome.code == 2
    assert "only one is held out; name more" in outcome.err
    assert not (tmp_path / "comparison").exists()


def test_a_column_that_keeps_nothing_out_is_named(cagsr, small, models, rows):
    rows("train.jsonl", *[{"prompt": "describe city : lyon"}] * 5)
    data = ["data.source=train.jsonl", "data.holdout_column=prompt", f"model.name={models / 't5'}"]
    outcome = cagsr("compare", *small, *data, "compare.systems=[no-rl]", "compare.directory=comparison")
    assert outcome.code == 2
    assert (
        "data.holdout_column: no row of train.jsonl falls to the heldout prompts by its 'prompt'"
        in outcome.err
    )


def test_quick_is_a_smaller_comparison_in_a_directory_of_its_own(compared):
    outcome, directory = compared("--quick", "compare.systems=[no-rl, lexical]", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["seeds"] == [0]
    assert not directory.exists()
    assert (directory.with_name("comparison-quick") / "summary.json").exists()


def test_the_list_of_systems_says_what_each_does(cagsr):
    outcome = cagsr("compare", "--list")
    assert outcome.code == 0
    assert "cagsr-ppo" in outcome.out
    assert "PPO with a critic" in outcome.out


def test_heads_are_learnt_once_and_read_by_every_system(cagsr, small):
    save_assistant("assistant")
    given = ["data.task=restaurants", "model.name=assistant", "reward.preset=attention-values"]
    given += [
        "compare.systems=[no-rl, cagsr-grpo, lexical]",
        "compare.seeds=[0]",
        "compare.directory=compared",
    ]
    outcome = cagsr("compare", *small, *given)
    assert outcome.code == 0, outcome.err
    learnt = json.loads(Path("compared/heads.json").read_text())
    for system in ("cagsr-grpo", "lexical"):
        config = Path(f"compared/{system}/seed-0/config.yaml").read_text()
        assert "heads: compared/heads.json" in config
        assert "kind: pieces" in config
    again = cagsr("compare", *small, *given, "--resume")
    assert again.code == 0, again.err
    assert json.loads(Path("compared/heads.json").read_text()) == learnt


def test_the_reward_of_a_comparison_is_chosen_once_for_all_its_systems(cagsr, small, models, monkeypatch):
    given = ["data.task=slots", f"model.name={models / 't5'}", "compare.systems=[no-rl, cagsr-grpo, length]"]
    given += ["compare.seeds=[0]", "compare.directory=compared", "reward.preset=robust", "--json"]
    outcome = cagsr("compare", *small, *given)
    assert outcome.code == 0, outcome.err
    assert " ".join(outcome.err.split()).count("reward: robust is knockout for this base: ") == 1
    assert json.loads(outcome.out)["reward"] == "knockout"
    kept = Path("compared/heads.json").read_text()
    assert json.loads(kept)["preset"] == "knockout"
    for system in ("cagsr-grpo", "length"):
        assert not Path(f"compared/{system}/seed-0/heads.json").exists()
    monkeypatch.setattr("cagsr.evaluation.chosen_reward.find_heads", None)
    again = cagsr("compare", *small, *given, "--resume")
    assert again.code == 0, again.err
    assert "(as in compared/heads.json)" in " ".join(again.err.split())
    assert Path("compared/heads.json").read_text() == kept
