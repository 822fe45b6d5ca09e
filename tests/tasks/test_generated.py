"""Every generated task: rows, splits, checkers and tokenizers."""

import json
import re
import subprocess
import sys
from random import Random

import pytest

from cagsr.errors import InputError
from cagsr.tasks import SPLITS, TASKS, tokenizer
from cagsr.tasks.task import Task

EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
# Those that small models are made for; the others' prompts are for instruct models, which have tokenizers.
WITH_WORDS = pytest.mark.parametrize(
    "task",
    [task for name, task in TASKS.items() if name not in ("restaurants", "requests")],
    ids=lambda task: task.name,
)


@EVERY_TASK
def test_a_seed_gives_the_same_rows_and_another_seed_gives_others(task: Task):
    rows = task.rows("train", 31, seed=3)
    assert rows == task.rows("train", 31, seed=3)
    assert rows[:11] == task.rows("train", 11, seed=3)
    assert rows != task.rows("train", 31, seed=5)


def test_rows_do_not_depend_on_the_hash_seed_of_the_process():
    code = "from cagsr.tasks import TASKS; print([t.rows('heldout', 3) for t in TASKS.values()])"
    command = [sys.executable, "-c", code]
    outputs = {
        subprocess.run(command, env={"PYTHONHASHSEED": h}, capture_output=True, check=True).stdout
        for h in "12"
    }
    assert len(outputs) == 1


@EVERY_TASK
def test_splits_share_no_prompt_whatever_their_seeds(task: Task):
    keys = {
        split: {task.key(row) for seed in range(3) for row in task.rows(split, 101, seed)} for split in SPLITS
    }
    assert keys["train"].isdisjoint(keys["development"])
    assert keys["train"].isdisjoint(keys["heldout"])
    assert keys["development"].isdisjoint(keys["heldout"])
    assert all(len(found) > 250 for found in keys.values()), "prompts hardly vary"


@EVERY_TASK
def test_rows_survive_json(task: Task):
    rows = task.rows("development", 7)
    assert json.loads(json.dumps(rows)) == rows


def test_an_unknown_split_is_named():
    with pytest.raises(InputError, match="no split 'held-out'; did you mean 'heldout'"):
        TASKS["slots"].rows("held-out", 1)


@EVERY_TASK
def test_a_complete_response_has_no_error(task: Task):
    random = Random(0)
    for row in task.rows("train", 500):
        check = task.check(row, task.complete(row, random))
        assert check.slots == len(row["slots"])
        assert (check.missing, check.hallucinated, check.repeated) == (0, 0, 0), row
        assert task.quality(row, task.complete(row, random)) == 1


@EVERY_TASK
def test_references_leave_slots_out_but_invent_and_repeat_nothing(task: Task):
    rows = task.rows("train", 1000)
    checks = [task.check(row, row["reference"]) for row in rows]
    assert all(check.hallucinated == check.repeated == 0 for check in checks)
    assert all(check.missing < check.slots for check in checks)
    assert 0.5 < 1 - sum(c.missing for c in checks) / sum(c.slots for c in checks) < 0.8
    assert any(check.missing == 0 for check in checks)


@EVERY_TASK
def test_an_empty_response_misses_every_slot(task: Task):
    row = task.rows("train", 1)[0]
    check = task.check(row, "")
    assert (check.missing, check.hallucinated, check.repeated) == (check.slots, 0, 0)
    assert task.quality(row, "") == 0


@EVERY_TASK
def test_a_complete_response_said_twice_repeats_every_slot(task: Task):
    row = task.rows("train", 1)[0]
    text = task.complete(row, Random(0))
    check = task.check(row, f"{text} {text}")
    # A name and a type of place may recur (tasks.e2e).
    may_recur = {"name", "eatType"} if task.name == "restaurants" else set()
    counted = sum(field not in may_recur for field, _ in row["slots"])
    assert (check.missing, check.hallucinated, check.repeated) == (0, 0, counted)


@EVERY_TASK
def test_a_checker_reads_text_without_spaces_around_punctuation(task: Task):
    row = task.rows("train", 1)[0]
    text = re.sub(r" ([.,;:!?])", r"\1", task.complete(row, Random(0))).capitalize()
    assert task.check(row, text).slot_error_rate == 0


@WITH_WORDS
@pytest.mark.parametrize("kind", ["encoder-decoder", "causal"])
def test_a_tokenizer_knows_every_word_and_decodes_what_it_encoded(task: Task, kind: str):
    words = tokenizer(task, kind)
    assert len({words.pad_token_id, words.eos_token_id, words.unk_token_id}) == 3
    for row in task.rows("train", 200):
        text = task.complete(row, Random(0))
        for part in (row["prompt"], row["reference"], text):
            ids = words(part)["input_ids"]
            assert words.unk_token_id not in ids, part
            assert (ids[-1] == words.eos_token_id) == (kind == "encoder-decoder")
        decoded = words.decode(words(text)["input_ids"], skip_special_tokens=True)
        assert task.check(row, decoded).slot_error_rate == 0


@WITH_WORDS
def test_token_offsets_point_at_the_tokens_text(task: Task):
    words = tokenizer(task)
    prompt = task.rows("train", 1)[0]["prompt"]
    encoded = words(prompt, return_offsets_mapping=True)
    pieces = [prompt[start:end] for start, end in encoded["offset_mapping"]]
    assert [piece for piece in pieces if piece] == words.convert_ids_to_tokens(
        words(prompt, add_special_tokens=False)["input_ids"]
    )


def test_drawing_rows_imports_no_torch():
    code = (
        "import sys; from cagsr.tasks import TASKS; TASKS['slots'].rows('train', 3);"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["restaurants", "requests"])
def test_a_task_for_instruct_models_has_no_words_for_a_small_one(name: str):
    with pytest.raises(InputError, match=rf"{name} has no vocabulary of its own.*model\.name"):
        tokenizer(TASKS[name])


def test_references_of_restaurants_have_single_spaces():
    rows = TASKS["restaurants"].rows("train", 100)
    assert not [row["reference"] for row in rows if "  " in row["reference"]]
    assert any("is not family friendly" in row["reference"] for row in rows)
