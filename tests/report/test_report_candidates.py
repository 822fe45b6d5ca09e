"""What the candidates browser is given: words, attention between them, parts of rewards, suspicions."""

import pytest

import made_runs
from cagsr.report import browse
from cagsr.report.browse import browsable, suspicions
from cagsr.report.pairs import before_and_after, comparable
from cagsr.report.read import Candidate, Response, Run, read_run


def given(*rows: dict) -> list[Candidate]:
    return [Candidate.model_validate(row) for row in rows]


def shown(*rows: dict) -> dict:
    return browsable([Run(path=None, name="run", candidates=given(*rows))])[0]  # type: ignore[arg-type]


def test_candidates_are_ordered_by_reward_and_each_is_split_into_its_parts():
    run = shown(*made_runs.group())
    assert run["signals"] == ["coverage", "repetition"]
    (group,) = run["groups"]
    assert [one["r"] for one in group["w"]] == [3.0, 1.0]
    assert [one["p"] for one in group["w"]] == [[3.0, 0.0], [1.0, 0.0]]
    assert group["w"][0]["x"] == [1.5, 0.0]


def test_words_look_at_words_and_the_end_of_the_prompt_is_none():
    (group,) = shown(*made_runs.group())["groups"]
    assert group["u"] == ["name ", ": ", "Vaults ", "; ", "food ", ": ", "English"]
    best = group["w"][0]
    assert best["u"] == ["Vaults ", "serves ", "English"]
    assert best["l"] == [[2, 60], [0, 30], [6, 48]]
    assert best["k"] == [30, 0, 60, 0, 0, 0, 48]


TALK = "<s>system\nbrief<e>\n<s>user\nsay it<e>\n<s>assistant\n"
TURNS = [["system", 10, 15], ["user", 27, 33]]


def test_a_conversation_is_shown_by_role_without_its_template():
    tokens = [[0, 3], [3, 9], [10, 15], [15, 18], [27, 30], [30, 33], [33, 36]]
    attention = {"response": [[0, 4]], "weights": [[0, 0.9, 4, 0.4, 6, 0.8]]}
    row = made_runs.candidate(
        "said",
        1.0,
        prompt=TALK,
        turns=TURNS,
        tokens=tokens,
        salience=[0, 0, 0, 0, 1, 1, 0],
        attention=attention,
    )
    (group,) = shown(row)["groups"]
    assert "".join(group["u"]) == "System: brief\n\nUser: say it"
    assert [group["u"][at].strip() for at in group["c"]] == ["say", "it"]
    (look,) = group["w"][0]["l"]
    assert [(group["u"][at].strip(), percent) for at, percent in zip(look[::2], look[1::2], strict=True)] == [
        ("say", 40)
    ]
    rows = [Response.model_validate({"prompt": TALK, "turns": TURNS, "response": "said"})]
    side_by_side = comparable({("a", ""): rows, ("b", ""): rows})
    assert side_by_side is not None
    assert side_by_side["prompts"] == ["System: brief\n\nUser: say it"]


def test_what_a_knockout_explains_goes_with_the_words_of_its_segments():
    (group,) = shown(*made_runs.explained_group())["groups"]
    assert group["g"] == [[0, 2], [4, 6]]
    assert [one["d"] for one in group["w"]] == [[9.1, 2.99], [3.0, -0.4]]
    first, second = made_runs.explained_group()
    # One that lacks it, or a segment of tokens that are not there: nothing is made up.
    (without,) = shown(first, second | {"explained": []})["groups"]
    assert "g" not in without
    (beyond,) = shown(*(row | {"segments": [[0, 99], [7]]} for row in (first, second)))["groups"]
    assert beyond["g"] == [[0], []]


def test_how_strongly_pieces_were_looked_at_goes_with_the_words_of_the_pieces():
    (group,) = shown(*made_runs.pieces_group())["groups"]
    assert group["g"] == [[0, 2], [4, 5, 6]]
    assert [one["o"] for one in group["w"]] == [[0.0131, 0.0403], [0.0129, 0.00412]]
    assert all("d" not in one for one in group["w"])
    first, second = made_runs.pieces_group()
    (both,) = shown(*(row | {"explained": [9.1, 2.99]} for row in (first, second)))["groups"]
    assert [(one["d"], one["o"]) for one in both["w"]] == [
        ([9.1, 2.99], [0.0131, 0.0403]),
        ([9.1, 2.99], [0.0129, 0.00412]),
    ]
    (without,) = shown(first, second | {"looked": [0.1]})["groups"]
    assert "g" not in without


def test_without_held_out_responses_pairs_are_those_of_the_evaluations_and_it_is_said(tmp_path):
    trained = before_and_after(read_run(made_runs.make_evaluated(tmp_path / "run")))
    assert trained is not None
    assert [system["name"] for system in trained["systems"]] == ["base", "step 2 (best/)", "step 3 (last)"]
    assert trained["systems"][2] == {
        "name": "step 3 (last)",
        "responses": ["a b c", "x"],
        "values": [[0.5], [0.1]],
    }
    assert trained["primary"] == 0
    assert trained["what"].startswith("Greedy responses to development prompts: none is trained on")
    held_out = before_and_after(read_run(made_runs.make_demo(tmp_path / "demo")))
    assert held_out is not None
    assert held_out["what"] == "Greedy responses to held-out prompts."
    assert before_and_after(read_run(made_runs.make_run(tmp_path / "plain"))) is None


def test_a_word_of_several_tokens_looks_as_its_strongest_and_gets_what_all_its_tokens_get():
    row = made_runs.candidate(
        "unkind",
        1.0,
        tokens=[[0, 3], [3, 6]],
        prompt="abcdef",
        salience=[1, 1],
        attention={"response": [[0, 2], [2, 6]], "weights": [[0, 0.3, 1, 0.2], [1, 0.4]]},
    )
    (one,) = shown(row)["groups"][0]["w"]
    assert one["l"] == [[0, 50]]
    assert one["k"] == [50]


def test_the_end_of_a_response_is_no_word_that_looks():
    row = made_runs.candidate("a", 1.0)
    row["attention"] = {"response": [[0, 1], [1, 1]], "weights": [[2, 0.4], [4, 0.9]]}
    (one,) = shown(row)["groups"][0]["w"]
    assert one["l"] == [[2, 40]]


def test_a_prompt_word_has_the_strongest_attention_also_where_no_word_kept_it():
    row = made_runs.candidate("a b", 1.0, [{2: 0.5}, {4: 0.3}], attended=[0.12, 0, 0.5, 0, 0.3, 0, 0.15, 0.9])
    (one,) = shown(row)["groups"][0]["w"]
    assert one["k"] == [12, 0, 50, 0, 30, 0, 15]


def test_words_that_count_are_those_with_salience():
    (group,) = shown(*made_runs.group())["groups"]
    assert [group["u"][at].strip() for at in group["c"]] == ["name", "Vaults", "food", "English"]
    (older,) = shown(made_runs.candidate("a", 1.0, salience=[]))["groups"]
    assert older["c"] == group["c"]


def test_without_attention_of_single_words_the_strongest_of_each_prompt_token_is_left():
    row = made_runs.candidate("a", 1.0, attended=[0.1, 0.2, 0.3, 0, 0, 0, 0.5, 0.9])
    (one,) = shown(row)["groups"][0]["w"]
    assert one["k"] == [10, 20, 30, 0, 0, 0, 50]
    assert "l" not in one


def test_rows_of_before_attention_was_kept_are_shown_without():
    row = made_runs.candidate("a", 1.0)
    for key in ("tokens", "salience", "attended", "weighted"):
        del row[key]
    (one,) = shown(row)["groups"][0]["w"]
    assert (one["k"], one["p"]) == ([], [None, None])


def test_attention_to_tokens_that_are_not_there_is_left_out():
    row = made_runs.candidate("a b", 1.0, [{99: 0.5, -1: 0.5, 2: 0.4}, {}])
    (one,) = shown(row)["groups"][0]["w"]
    assert one["l"] == [[2, 40], []]


def test_the_same_prompt_at_two_steps_is_two_groups():
    assert [group["s"] for group in shown(*made_runs.group(1), *made_runs.group(2))["groups"]] == [1, 2]


def test_very_many_candidates_are_thinned_over_the_steps(monkeypatch):
    monkeypatch.setattr(browse, "MOST_CANDIDATES", 10)
    run = shown(*(row for step in range(12) for row in made_runs.group(step)))
    assert [group["s"] for group in run["groups"]] == [0, 3, 6, 9]
    assert run["left_out"] == 8


@pytest.mark.parametrize(
    ("response", "reasons"),
    [
        ("a b c d e f", []),
        ("", ["empty"]),
        ("so so so so so so", ["repeats itself"]),
        ("one name : Vaults ; food : English", ["copies the prompt"]),
        ("a b c d e f g h i j", ["much longer than the others"]),
    ],
)
def test_what_a_reward_should_not_pay_for_is_suspected(response, reasons):
    usual = made_runs.candidate("a b c d e f", 1.0)
    rows = given(made_runs.candidate(response, 2.0), usual, usual)
    assert suspicions(rows[0], rows) == reasons


def test_a_response_that_does_not_end_is_suspected():
    rows = given(made_runs.candidate("a b c", 1.0, finished=False))
    assert suspicions(rows[0], rows) == ["does not end"]


def responses(system: str, texts, errors) -> list[Response]:
    return [Response.model_validate(row) for row in made_runs.responses(system, texts, errors)]


def test_pairs_have_the_metrics_that_all_systems_have():
    before, after = responses("a", ("x", "y"), (0.5, 0.2)), responses("b", ("x z", "y"), (0.0, 0.2))
    found = comparable({("a", ""): before, ("b", "3"): after})
    assert found is not None
    assert found["prompts"] == ["prompt 0", "prompt 1"]
    assert [system["name"] for system in found["systems"]] == ["a", "b, seed 3"]
    assert [metric["name"] for metric in found["metrics"]] == ["slot errors", "length"]
    assert [metric["higher"] for metric in found["metrics"]] == [False, None]
    assert (found["primary"], found["systems"][1]["values"]) == (0, [[0.0, 2.0], [0.2, 1.0]])


def test_systems_that_answered_other_prompts_are_no_pair():
    assert (
        comparable({("a", ""): responses("a", ("x",), (0.5,)), ("b", ""): responses("b", ("x", "y"), (0, 0))})
        is None
    )
    assert comparable({}) is None
