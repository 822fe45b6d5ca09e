"""Preference pairs are read, or refused by name."""

import csv
import json

import pytest

import tiny
from cagsr.data.preferences import read_pairs
from cagsr.errors import InputError
from chat_models import CHATML, tokenizer

TOKENIZER = tiny.policy("llama").tokenizer


def written(tmp_path, *rows) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"prompt": "describe city : riga", "chosen": "it is riga", "rejected": "it is rome"}


def test_each_row_is_a_pair(tmp_path):
    pairs, report = read_pairs(written(tmp_path, GOOD, GOOD | {"chosen": "riga"}), TOKENIZER)
    assert [(p.prompt.text, p.chosen, p.rejected) for p in pairs] == [
        ("describe city : riga", "it is riga", "it is rome"),
        ("describe city : riga", "riga", "it is rome"),
    ]
    assert (report.rows, report.used) == (2, 2)


def test_csv_is_read_too_and_leaves_room_for_others_tables(tmp_path):
    limit = csv.field_size_limit()
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\ndescribe city : riga,riga,rome\n")
    ((pair,), _) = read_pairs(str(path), TOKENIZER)
    assert (pair.chosen, pair.rejected) == ("riga", "rome")
    assert csv.field_size_limit() >= limit


def test_conversations_are_read_with_their_prompt_apart_or_at_the_head_of_both(tmp_path):
    asked = [{"role": "user", "content": "describe city : riga"}]
    replies = [[{"role": "assistant", "content": text}] for text in ("riga", "rome")]
    apart = {"prompt": asked, "chosen": replies[0], "rejected": replies[1]}
    implicit = {"chosen": asked + replies[0], "rejected": asked + replies[1]}
    tokenizer = tiny._tokenizer("causal").__class__(
        tokenizer_object=tiny._tokenizer("causal").backend_tokenizer
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} :"
    for row in (apart, implicit):
        ((pair,), _) = read_pairs(written(tmp_path, row), tokenizer)
        assert (pair.prompt.text, pair.chosen, pair.rejected) == ("describe city : riga :", "riga", "rome")


def test_a_pair_may_begin_in_a_turn_of_the_assistant_and_has_its_own_tools_and_variables(tmp_path):
    begun = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "hello"}]
    asked = {"prompt": begun, "chosen": " world", "rejected": " today", "tools": [{"name": "t"}]}
    template = CHATML + "{% if calm is defined %}{{ tools[0].name }}{{ calm }}{% endif %}"
    chat = tokenizer(template)
    ((pair,), _) = read_pairs(written(tmp_path, asked), chat)
    assert pair.prompt.text.endswith("<|im_start|>assistant\nhello")
    asked = {**asked, "prompt": begun[:1], "chat_template_kwargs": {"calm": 7}}
    ((pair,), _) = read_pairs(written(tmp_path, asked), chat, chat_template_kwargs={"calm": 5})
    assert pair.prompt.text.endswith("assistant\nt7")


def test_the_prompt_of_both_ends_where_they_differ(tmp_path):
    turns = [
        {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))
    ]
    other = [turns[0], {"role": "assistant", "content": "x"}, turns[2]]
    with pytest.raises(InputError, match="row 1: chosen must be one assistant turn after the prompt, got 2"):
        read_pairs(written(tmp_path, {"chosen": turns, "rejected": other}), tokenizer(CHATML))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (GOOD | {"chosen": 3}, "row 2: chosen must be text, got int"),
        (GOOD | {"rejected": " "}, "row 2: rejected is empty"),
        (GOOD | {"rejected": "it is riga"}, "row 2: chosen and rejected are the same text"),
        (GOOD | {"chosen": [{"content": "a"}, {"content": "b"}]}, "row 2: chosen must be one assistant turn"),
        ({"chosen": "a", "rejected": "b"}, "row 2: no 'prompt'"),
    ],
)
def test_a_bad_row_is_named_or_counted_never_lost(tmp_path, row, problem):
    path = written(tmp_path, GOOD, row)
    with pytest.raises(InputError, match=problem):
        read_pairs(path, TOKENIZER)
    pairs, report = read_pairs(path, TOKENIZER, skip_invalid=True)
    assert len(pairs) == 1
    assert len(report.invalid) == 1


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = written(tmp_path, {"prompt": "a", "chosen": "b", "reject": "c"})
    with pytest.raises(InputError, match="no 'rejected' column; did you mean 'reject'"):
        read_pairs(path, TOKENIZER)
