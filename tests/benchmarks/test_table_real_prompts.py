"""What the table on a real assistant asks: examples without an error, E2E's layouts and its parts."""

import gzip
import json

import pytest

from benchmarks import table_real_prompts as prompts
from cagsr.errors import InputError
from cagsr.tasks import TASKS
from cagsr.tasks.e2e import slots_of
from cagsr.tasks.requests import PARTS
from cagsr.tasks.restaurants import ASK
from cagsr.tasks.task import split_of

MR = "name[The Mill], familyFriendly[no], near[Café Rouge]"
ROW = {
    "prompt": [{"role": "user", "content": f"{ASK} name: The Mill; familyFriendly: no; near: Café Rouge"}],
    "slots": [["name", "The Mill"], ["familyFriendly", "no"], ["near", "Café Rouge"]],
}


@pytest.mark.parametrize("example", prompts.EXAMPLES["restaurants"])
def test_a_worked_example_says_every_fact_once_and_nothing_else(example):
    asked, said = example
    facts = dict(fact.split(": ") for fact in asked.removeprefix(f"{ASK} ").split("; "))
    check = TASKS["restaurants"].check({"slots": list(facts.items())}, said)
    assert (check.slots, check.missing, check.hallucinated, check.repeated) == (len(facts), 0, 0, 0)


@pytest.mark.parametrize("example", prompts.EXAMPLES["requests"])
def test_a_worked_message_says_every_part_once_and_nothing_else(example):
    asked, said = example
    slots = [
        (field, value)
        for field, parts in PARTS.items()
        for value, part in parts.items()
        if part.asked in asked
    ]
    check = TASKS["requests"].check({"slots": slots}, said)
    assert len(slots) in (4, 5)
    assert (check.missing, check.hallucinated, check.repeated) == (0, 0, 0)


def test_no_example_has_a_name_of_the_tasks():
    names = {slot for row in TASKS["restaurants"].rows("train", 200) for slot in map(tuple, row["slots"])}
    assert ("name", "The Golden Pear") not in names
    assert not any(
        person in row["prompt"][0]["content"]
        for row in TASKS["requests"].rows("train", 200)
        for person in ("Theo", "Rosa")
    )


def test_each_variant_asks_for_the_same_facts_in_its_own_way():
    asked = {variant: prompts.messages(prompts.E2E, ROW, variant) for variant in prompts.VARIANTS}
    said = {variant: turns[-1]["content"] for variant, turns in asked.items()}
    assert asked["plain"] == ROW["prompt"]
    facts = "name: The Mill; familyFriendly: no; near: Café Rouge"
    assert said["better"] == f"{prompts.BETTER['restaurants']} {facts}"
    assert [turn["role"] for turn in asked["examples"]] == ["user", "assistant"] * 2 + ["user"]
    assert said["examples"] == said["plain"]
    assert said["lines"] == f"{ASK}\nname: The Mill\nfamilyFriendly: no\nnear: Café Rouge"
    assert said["bullets"] == f"{ASK}\n\n- name: The Mill\n- familyFriendly: no\n- near: Café Rouge"
    assert said["prose"] == f"{ASK} The name is The Mill. It is not family-friendly. It is near Café Rouge."
    assert said["fields"] == f"{ASK} name[The Mill] | familyFriendly[no] | near[Café Rouge]"


def test_a_request_is_asked_better_below_its_own_words_whatever_its_layout():
    for row in TASKS["requests"].rows("development", 9):
        plain = row["prompt"][-1]["content"]
        better = prompts.messages("requests", row, "better")
        assert better == [{"role": "user", "content": f"{plain}\n\n{prompts.BETTER['requests']}"}]


@pytest.fixture
def e2e(tmp_path):
    """60 meanings with two references each, and one that stands twice."""
    source, place = tmp_path / "e2e.jsonl.gz", tmp_path / "made" / "prompts.jsonl"
    rows = [
        {"mr": f"name[N{n}], food[French], familyFriendly[yes]", "reference": f"N{n} is {text}."}
        for n in range(60)
        for text in ("French", "for families", "French")
    ]
    source.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    prompts.prepare_e2e(source, place)
    return place


def test_a_meaning_is_one_prompt_with_all_its_references(e2e):
    rows = [json.loads(line) for line in e2e.read_text().splitlines()]
    assert len(rows) == len({row["mr"] for row in rows}) == 60
    assert {row["layout"] for row in rows} == set(prompts.LAYOUTS)
    for row in rows:
        name = row["mr"][5 : row["mr"].index("]")]
        assert sorted(row["references"]) == [f"{name} is French.", f"{name} is for families."]
        assert row["slots"] == [list(slot) for slot in slots_of(row)]
        assert row["prompt"][0]["content"] == ASK + prompts.LAYOUTS[row["layout"]](row["slots"])


def test_held_out_meanings_are_those_that_training_leaves_out_in_one_line(e2e):
    held_out = prompts.rows_of(prompts.E2E, "heldout", 4, e2e)
    assert len(held_out) == 4
    assert {split_of(row["mr"]) for row in held_out} == {"heldout"}
    for row in held_out:
        assert row["prompt"][0]["content"].startswith(f"{ASK} name: N")
    trained_on = {row["mr"] for row in prompts.rows_of(prompts.E2E, "train", 60, e2e)}
    assert not trained_on & {row["mr"] for row in held_out}


@pytest.mark.parametrize("row", ['{"mr": "name[A]"}', '{"reference": "a"}', "{"])
def test_a_file_without_meanings_or_references_is_refused_with_its_row(tmp_path, row):
    source = tmp_path / "other.jsonl"
    source.write_text('{"mr": "name[A]", "reference": "A."}\n' + row + "\n")
    with pytest.raises(InputError, match=r"--e2e: .*other.jsonl row 2: .*give E2E's rows"):
        prompts.prepare_e2e(source, tmp_path / "prompts.jsonl")
