"""The table on a real assistant: what is in the record is not made again, and a row says what a run found."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks import results
from benchmarks import table_real as real
from benchmarks import table_real_answers as keeping
from benchmarks import table_real_rows as made_of
from benchmarks import table_real_text as text
from cagsr.rating.items_source import read_groups
from cagsr.tasks import TASKS

ROWS = TASKS["restaurants"].rows("heldout", made_of.PROMPTS)


def complete(row) -> str:
    return TASKS["restaurants"].write([(field, value) for field, value in row["slots"]], Random(0))


def wrong(row) -> str:
    """All of it, and a Michelin star."""
    return complete(row) + " It has a Michelin star."


@dataclass(frozen=True)
class Command:
    """Runs the table with models that answer at once, and tells what was trained and answered."""

    run: Callable[..., list[tuple[str, ...]]]
    record: Path
    runs: Path

    def __call__(self, *arguments: str) -> list[tuple[str, ...]]:
        return self.run(*arguments)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The command.

    The base says nothing, asked better it says the facts with a Michelin star, and whatever is trained says the facts.
    Of eight candidates the last says the facts, and the reward chooses the third.
    """
    made: list[tuple[str, ...]] = []

    def cagsr(*arguments: str) -> str:
        place = next(Path(a.partition("=")[2]) for a in arguments if a.startswith("run.directory="))
        made.append(("train", place.name, "resumed" if "--resume" in arguments else "begun"))
        place.mkdir(parents=True, exist_ok=True)
        seconds = '{"step": 1, "seconds": 90.0}\n{"step": 2, "seconds": 30.0}\n{}\n'
        (place / "metrics.jsonl").write_text(seconds)
        (place / "summary.json").write_text("{}")
        return ""

    def kept(path, config, asked, texts, **more):
        made.append(("answers", path.parent.name, path.stem))
        shape = (len(texts), len(texts[0]))
        counted = {
            name: [[value] * shape[1]] * shape[0]
            for name, value in (("tokens", 7), ("finished", 1), ("repeated", 0))
        }
        found = (
            {"prompts": keeping._identity(asked, config.sampling.max_new_tokens), "responses": texts}
            | counted
            | more
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        return found

    def greedily(path, config, model, asked):
        if model != "smol":
            assert Path(model).name == "model"
            return kept(path, config, asked, [[complete(row)] for row in ROWS])
        better = path.stem == "answers-better"
        return kept(path, config, asked, [[wrong(row) if better else ""] for row in ROWS])

    def candidates(path, config, model, asked, seed, console):
        texts = [["", "", "It has a Michelin star.", *[""] * 4, complete(row)] for row in ROWS]
        return kept(path, config, asked, texts, chosen=[2] * len(ROWS), reward="attention")

    monkeypatch.setattr(made_of, "_cagsr", cagsr)
    monkeypatch.setattr(real, "instruct_model", lambda console: "smol")
    monkeypatch.setattr(keeping, "answer_greedily", greedily)
    monkeypatch.setattr(keeping, "sample_candidates", candidates)
    monkeypatch.setattr(keeping, "with_relevance", lambda path, kept, rows: kept)
    where = ["--directory", str(tmp_path / "runs"), "--record", str(tmp_path / "real.json")]

    def run(*arguments: str) -> list[tuple[str, ...]]:
        made.clear()
        monkeypatch.setattr(sys, "argv", ["real", *where, *arguments])
        real.main()
        return list(made)

    return Command(run, tmp_path / "real.json", tmp_path / "runs")


ONE = ["--task", "restaurants", "--seed", "0"]


def found(path: Path) -> list[dict[str, str]]:
    part = results.read(path)["restaurants"]
    return [dict(zip(part["columns"], row, strict=True)) for row in part["rows"]]


def test_a_row_has_means_differences_to_the_base_and_intervals(table):
    table(*ONE, "--system", "lexical")
    base, trained = found(table.record)
    assert (base["system"], base["slot errors"], base["said"], base["slot errors to no-rl"]) == (
        "no-rl",
        "1.000",
        ".000",
        "",
    )
    assert (trained["system"], trained["seed"], trained["asked"]) == ("lexical", "0", "plain")
    assert (trained["slot errors"], trained["said"], trained["foreign names"]) == (".000", "1.000", ".000")
    assert trained["slot errors to no-rl"] == "**-1.000 [-1.000, -1.000]**"
    assert trained["invented to no-rl"] == "+.000 [+.000, +.000]"
    assert (trained["tokens"], trained["minutes"], trained["ROUGE-L"]) == ("7", "2", "")


def test_answers_are_written_as_people_are_given_them(table, tmp_path):
    table(*ONE, "--system", "lexical", "--rate", str(tmp_path / "rated"))
    groups = read_groups(tmp_path / "rated", None, Random(0))
    assert [group.prompt for group in groups] == [row["prompt"][-1]["content"] for row in ROWS[: real.RATED]]
    first = {response.systems: response.text for response in groups[0].responses}
    assert first == {("no-rl",): "", ("lexical",): complete(ROWS[0])}


def test_a_run_is_resumed_and_one_in_the_record_is_left_alone(table):
    started = table.runs / "restaurants" / "length-0"
    started.mkdir(parents=True)
    (started / "run.json").write_text("{}")
    systems = ["--system", "length", "--system", "oracle"]
    assert table(*ONE, *systems) == [
        ("train", "length-0", "resumed"),
        ("answers", "no-rl", "answers-plain"),
        ("answers", "length-0", "answers-plain"),
        ("train", "oracle-0", "begun"),
        ("answers", "oracle-0", "answers-plain"),
    ]
    assert [row["system"] for row in found(table.record)] == ["no-rl", "length", "oracle"]
    assert table(*ONE, *systems) == []


def test_a_run_that_was_stopped_goes_on_and_is_answered_when_it_has_ended(table):
    place = table.runs / "restaurants" / "oracle-0"
    place.mkdir(parents=True)
    (place / "run.json").write_text("{}")
    (place / "summary.json").write_text('{"steps": 17, "stopped": "by SIGTERM"}')
    done = table(*ONE, "--system", "oracle")
    assert [each for each in done if each[1] == "oracle-0"] == [
        ("train", "oracle-0", "resumed"),
        ("answers", "oracle-0", "answers-plain"),
    ]


def test_what_is_trained_is_measured_again_without_training_and_from_the_answers_that_are_kept(table):
    table(*ONE, "--system", "oracle")
    table.record.write_text(
        json.dumps({"restaurants": {"columns": ["system"], "rows": [["of an older table"]]}})
    )
    assert table(*ONE, "--measure", "--system", "oracle", "--system", "length") == []
    assert [row["system"] for row in found(table.record)] == ["no-rl", "oracle"]
    (table.runs / "restaurants" / "oracle-0" / "answers-plain.json").unlink()
    assert table(*ONE, "--measure", "--system", "oracle") == [("answers", "oracle-0", "answers-plain")]


def test_measuring_again_takes_every_way_of_asking_that_was_answered_and_no_other(table):
    table(*ONE, "--system", "oracle", "--variant", "better")
    table.record.unlink()
    # What is trained is asked plainly in any case; the base was, to compare with.
    assert table(*ONE, "--measure") == [("answers", "oracle-0", "answers-plain")]
    asked = [(row["system"], row["asked"]) for row in found(table.record)]
    assert asked == [("no-rl", "plain"), ("no-rl", "better"), ("oracle", "plain"), ("oracle", "better")]
    wanted = ["--system", "oracle", "--variant", "examples"]
    assert table(*ONE, "--measure", *wanted) == [
        ("answers", "oracle-0", "answers-examples"),
        ("answers", "no-rl", "answers-examples"),
    ]


def test_what_was_forgotten_is_told_beside_the_base(table, tmp_path, monkeypatch):
    read = {"smol": np.log([8.0, 8.0, 8.0]), "model": np.log([8.0, 8.8, 9.68])}

    def nats(path, config, model, pieces):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"pieces": " ".join(pieces), "nats": read[Path(model).name].tolist()}))
        return read[Path(model).name]

    monkeypatch.setattr(text, "nats", nats)
    source = tmp_path / "elsewhere.txt"
    source.write_text("a b\n\nc d")
    table(*ONE, "--system", "oracle", "--system", "best-of-8", "--text", str(source))
    base, best, _, trained = found(table.record)
    assert (base["perplexity elsewhere"], base[made_of.FORGOTTEN]) == ("8.0", "")
    assert (best["perplexity elsewhere"], best[made_of.FORGOTTEN]) == ("", "")
    assert trained["perplexity elsewhere"] == "8.8"  # 0, 10 and 21 % more, the mean in nats: 10 %
    assert trained[made_of.FORGOTTEN] == "+10.0 [+0.0, +21.0]"
    table(*ONE, "--measure", "--system", "oracle")  # without --text, from what is kept
    assert found(table.record)[-1][made_of.FORGOTTEN] == "+10.0 [+0.0, +21.0]"
    kept = table.runs / "restaurants" / "no-rl" / "elsewhere.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"pieces": "as many of another text"}))
    table(*ONE, "--measure", "--system", "oracle")
    trained = found(table.record)[-1]
    assert (trained["perplexity elsewhere"], trained[made_of.FORGOTTEN]) == ("", "")


def test_answers_to_other_prompts_are_not_taken_for_these(table):
    table(*ONE, "--system", "oracle")
    path = table.runs / "restaurants" / "oracle-0" / "answers-plain.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": "others"}))
    assert table(*ONE, "--measure", "--system", "oracle") == [("answers", "oracle-0", "answers-plain")]


def test_a_prompt_is_a_rival_of_the_base_and_adds_to_what_training_gains(table):
    table(*ONE, "--system", "no-rl", "--system", "oracle", "--variant", "plain", "--variant", "better")
    rows = {(row["system"], row["asked"]): row for row in found(table.record)}
    assert list(rows) == [("no-rl", "plain"), ("no-rl", "better"), ("oracle", "plain"), ("oracle", "better")]
    better = rows["no-rl", "better"]
    assert better["slot errors to no-rl"] == "**-1.000 [-1.000, -1.000]**"
    assert better["foreign names to no-rl"] == "**+1.000 [+1.000, +1.000]**"
    assert better[made_of.SAME] == ""
    # Both say all: asked alike there is no difference left.
    assert rows["oracle", "better"][made_of.SAME] == "+.000 [+.000, +.000]"
    assert rows["oracle", "plain"][made_of.SAME] == ""


def test_the_best_of_eight_is_chosen_by_the_reward_and_by_the_checker(table):
    assert table(*ONE, "--system", "best-of-8") == [
        ("answers", "no-rl", "answers-plain"),
        ("answers", "best-of-8-0", "answers-plain"),
    ]
    _, chosen, oracle = found(table.record)
    assert (chosen["system"], chosen["foreign names"], chosen["minutes"]) == ("best-of-8", "1.000", "")
    assert (oracle["system"], oracle["slot errors"], oracle["foreign names"]) == (
        "best-of-8-oracle",
        ".000",
        ".000",
    )


def test_untrained_rivals_come_first_and_the_base_is_asked_in_every_wording():
    asked = list(real.cells(None, [0, 1], None))
    assert asked[:5] == [
        (0, "no-rl", "plain"),
        (0, "no-rl", "better"),
        (0, "no-rl", "examples"),
        (0, "best-of-8", "plain"),
        (0, "attention-values", "plain"),
    ]
    assert len(asked) == 3 + 2 * (1 + len(made_of.SYSTEMS))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "e2e"], "--task e2e needs E2E's rows: --e2e FILE"),
        (
            ["--task", "requests", "--variant", "bullets"],
            "--variant: the task requests is asked as plain, better",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(table, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        table(*arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_file_with_too_few_meanings_is_refused(table, tmp_path, capsys):
    source = tmp_path / "few.jsonl"
    source.write_text("".join(f'{{"mr": "name[N{n}]", "reference": "N{n}."}}\n' for n in range(20)))
    with pytest.raises(SystemExit):
        table("--task", "e2e", "--e2e", str(source), "--system", "no-rl")
    assert "held-out meanings, and the table asks 120" in capsys.readouterr().err


@pytest.mark.parametrize("system", made_of.SYSTEMS)
def test_every_system_is_a_valid_config(system: str):
    from cagsr.config import Config
    from cagsr.rewards.presets import as_read

    for task in made_of.TASKS:
        settings = made_of.Table(task, Path("runs"), "smol").settings
        config = Config.load(made_of.CONFIG, [*settings, *made_of.SYSTEMS[system]])
        assert as_read(config).reward.heads in ("all", "learn")
        assert (config.data.task or config.data.checker) == task
