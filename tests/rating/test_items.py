"""What is rated, and in which order: blind, shuffled, the same again, with checks among it."""

import json
from collections import Counter
from random import Random

import pytest

import raters
from cagsr.errors import InputError, StorageError
from cagsr.rating.items import Item, choose, flipped, from_json, order, passed, to_json
from cagsr.rating.items_source import Group, Response, read_groups


def groups(directory, systems=None):
    return read_groups(directory, systems, Random(5))


def test_a_comparisons_responses_are_grouped_by_prompt_with_every_seed_and_a_text_once(tmp_path):
    found = groups(raters.comparison(tmp_path, 3, ("base", "tuned", "best"), seeds=(0, 1)))
    assert [group.prompt for group in found] == [raters.prompt(n) for n in range(3)]
    assert {(one.text, one.systems) for one in found[1].responses} == {
        ("a wooden one", ("base",)),
        *((raters.response(name, 1, seed), (name,)) for name in ("tuned", "best") for seed in (0, 1)),
    }


def test_a_text_of_two_systems_is_shown_once_and_counts_for_both(tmp_path):
    for system in ("one", "two"):
        place = tmp_path / system / "seed-0"
        place.mkdir(parents=True)
        (place / "responses.jsonl").write_text(json.dumps({"prompt": "p", "response": "same"}) + "\n")
    assert groups(tmp_path) == [Group("p", (Response("same", ("one", "two")),))]
    assert groups(tmp_path, ["two"]) == [Group("p", (Response("same", ("two",)),))]


def test_a_run_gives_two_distinct_candidates_a_prompt_in_thirds_of_its_steps(tmp_path):
    found = groups(raters.run(tmp_path / "run", 7))
    assert [group.prompt for group in found] == [raters.prompt(step) for step in range(1, 8)]
    assert all(len({response.text for response in group.responses}) == 2 for group in found)
    parts = [group.responses[0].systems for group in found]
    assert parts == [("steps 1-2",)] * 2 + [("steps 3-4",)] * 2 + [("steps 5-7",)] * 3


TALK = "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nsay it<|im_end|>\n<|im_start|>assistant\n"
TURNS = [["system", 19, 24], ["user", 52, 58]]


def test_a_conversation_is_shown_by_role_without_its_template_and_counted_by_its_text(tmp_path):
    rows = [{"prompt": TALK, "turns": TURNS, "response": text} for text in ("a", "b")]
    for system, row in zip(("one", "two"), rows, strict=True):
        place = tmp_path / "compared" / system / "seed-0"
        place.mkdir(parents=True)
        (place / "responses.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "run").mkdir()
    written = "".join(json.dumps({"step": 1, **row}) + "\n" for row in rows)
    (tmp_path / "run" / "candidates.jsonl").write_text(written)
    for place in ("compared", "run"):
        found = groups(tmp_path / place)
        assert [(group.prompt, group.shown) for group in found] == [(TALK, "System: brief\n\nUser: say it")]
        for mode in ("scores", "pairs"):
            items = choose(found * 4, mode, 8, Random(0))
            assert {item.check for item in items} == {None, "repeated"}
            assert {item.shown for item in map(from_json, map(to_json, items))} == {found[0].shown}
    (tmp_path / "run" / "candidates.jsonl").write_text(written.replace("19", '"x"'))
    with pytest.raises(StorageError, match=r"candidates.jsonl:1 is damaged"):
        groups(tmp_path / "run")


def test_what_cannot_be_rated_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="nothing to rate"):
        groups(tmp_path)
    raters.comparison(tmp_path, 3)
    with pytest.raises(InputError, match="no 'tunde'; did you mean 'tuned'"):
        groups(tmp_path, ["tunde"])


@pytest.mark.parametrize("row", ['{"prompt": "p"}', '{"prompt": "p", "response": 3}', "[]", "3", "{"])
def test_a_row_that_is_damaged_is_named_by_its_line(tmp_path, row):
    path = raters.comparison(tmp_path, 3) / "base/seed-0/responses.jsonl"
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(StorageError, match=r"responses.jsonl:4 is damaged"):
        groups(tmp_path)


def test_a_row_torn_by_a_kill_is_left_out(tmp_path):
    path = raters.run(tmp_path / "run", 3) / "candidates.jsonl"
    path.write_text(path.read_text() + '{"prompt": "half')
    assert len(groups(tmp_path / "run")) == 3


def some(mode, tmp_path, prompts=30, count=40):
    return choose(groups(raters.comparison(tmp_path, prompts)), mode, count, Random(7))


def test_scores_take_all_responses_of_as_many_prompts_as_fit(tmp_path):
    items = [item for item in some("scores", tmp_path, count=41) if item.check is None]
    prompts = Counter(item.prompt for item in items)
    assert set(prompts.values()) == {2}
    assert len(prompts) == 20


def test_pairs_take_every_prompt_in_turn_and_systems_meet_equally_often(tmp_path):
    found = groups(raters.comparison(tmp_path, 11, ("base", "tuned", "best"), seeds=(0, 1)))
    items = [item for item in choose(found, "pairs", 33, Random(7)) if item.check is None]
    assert set(Counter(item.prompt for item in items).values()) == {3}
    met = Counter(frozenset(one.systems for one in item.responses) for item in items)
    assert len(met) == 3, "a system never meets itself while there are others"
    assert set(met.values()) == {11}


def test_candidates_of_one_run_meet_each_other(tmp_path):
    items = choose(groups(raters.run(tmp_path / "run", 3)), "pairs", 60, Random(7))
    assert len(items) == 3
    assert all(item.responses[0].text != item.responses[1].text for item in items)


@pytest.mark.parametrize("mode", ["scores", "pairs"])
def test_one_item_in_twenty_comes_again_and_another_has_a_response_to_another_prompt(tmp_path, mode):
    items = some(mode, tmp_path, prompts=60)
    assert Counter(item.check for item in items) == {None: 40, "foreign": 2, "repeated": 2}
    for item in items:
        own = {raters.response(name, int(item.prompt.split()[-1])) for name in ("base", "tuned")}
        if item.check == "foreign":
            assert item.responses[-1].text not in own
            assert item.responses[-1].systems == (), "it counts for no system"
        else:
            assert {response.text for response in item.responses} <= own
        if item.check == "repeated":
            assert items[item.repeats].responses == item.responses


def test_a_foreign_response_is_never_one_that_this_prompt_has_too():
    same = [Group(f"prompt {n}", (Response("always the same", ("one",)),)) for n in range(9)]
    assert {item.check for item in choose(same, "scores", 9, Random(0))} == {None, "repeated"}


def test_few_items_have_no_checks(tmp_path):
    assert {item.check for item in some("pairs", tmp_path, prompts=3)} == {None}


@pytest.mark.parametrize("mode", ["scores", "pairs"])
def test_every_rater_meets_every_item_once_in_an_order_of_their_own_that_stays(tmp_path, mode):
    items = some(mode, tmp_path, prompts=60)
    orders = {rater: order(items, rater, 3) for rater in ("anna", "ben", "carla")}
    assert len({tuple(numbers) for numbers in orders.values()}) == 3
    assert orders["anna"] == order(items, "anna", 3)
    assert orders["anna"] != order(items, "anna", 4)
    for numbers in orders.values():
        assert sorted(numbers) == list(range(len(items)))


def test_what_comes_again_comes_long_after_it_came(tmp_path):
    items = some("scores", tmp_path, prompts=60)
    for rater in map(str, range(200)):
        numbers = order(items, rater, 0)
        for number, item in enumerate(items):
            if item.repeats is not None:
                assert numbers.index(item.repeats) < len(numbers) / 2
                assert numbers.index(number) >= len(numbers) * 0.6


def test_sides_are_drawn_for_each_rater_and_exchanged_when_a_pair_comes_again(tmp_path):
    items = some("pairs", tmp_path, prompts=60)
    sides = [flipped(items, 3, f"rater {n}", 0) for n in range(400)]
    assert 150 < sum(sides) < 250  # 5 deviations around 200
    for number, item in enumerate(items):
        if item.repeats is not None:
            assert flipped(items, number, "anna", 0) != flipped(items, item.repeats, "anna", 0)


ONE = Item("p", (Response("a", ("one",)),))
TWO = Item("p", (Response("a", ("one",)), Response("b", ("two",))))
FOREIGN = Item("p", (Response("x", ()),), "foreign")
FOREIGN_PAIR = Item("p", (Response("a", ("one",)), Response("x", ())), "foreign")


@pytest.mark.parametrize(
    ("items", "answers", "result"),
    [
        ([FOREIGN], {"relevance": 2, "coherence": 5, "overall": 1}, True),
        ([FOREIGN], {"relevance": 3, "coherence": 1, "overall": 1}, False),
        ([FOREIGN], {"relevance": 1}, None),
        ([FOREIGN_PAIR], {"preference": 1}, True),
        ([FOREIGN_PAIR], {"preference": 0}, False),
    ],
)
def test_a_foreign_response_is_seen_through_or_not(items, answers, result):
    assert passed(items, 0, {(0, question): value for question, value in answers.items()}) is result


@pytest.mark.parametrize(
    ("item", "first", "again", "result"),
    [(ONE, 4, 3, True), (ONE, 4, 2, False), (TWO, 1, 1, True), (TWO, 1, 0, False)],
)
def test_what_comes_again_is_answered_alike_or_not(item, first, again, result):
    items = [item, Item("p", item.responses, "repeated", 0)]
    asked = ["preference"] if item is TWO else ["relevance", "coherence", "overall"]
    answers = {(0, question): first for question in asked}
    assert passed(items, 1, answers) is None
    assert passed(items, 1, answers | {(1, question): again for question in asked}) is result


def test_an_item_comes_back_equal_from_json_whatever_its_texts_are():
    item = Item("\ud800 \0 \u202e", (Response("\udfff\r\n", ("é",)), Response("", ())), "repeated", 3)
    assert from_json(json.loads(json.dumps(to_json(item)))) == item
