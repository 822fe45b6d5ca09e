"""Data sets of other programs: Alpaca columns, ShareGPT turns, OpenAI content parts, calls of tools."""

import json

import pytest

import tiny
from cagsr.data.preferences import pair_rows
from cagsr.data.prompts import encode, map_columns
from cagsr.data.readers import rows_of
from cagsr.errors import InputError


def mapped(*rows, **options):
    return map_columns(rows_of(rows, "d"), **options)


def test_alpaca_columns_are_instruction_blank_line_and_input_and_the_output_is_the_reference():
    rows = mapped(
        {"instruction": "Translate.", "input": "two cats", "output": "zwei Katzen"},
        {"instruction": "Tell a joke.", "input": "", "output": "Knock."},
        {"instruction": "Tell a joke.", "input": None, "output": "Knock."},
    )
    assert [(row.values["prompt"], row.values["reference"]) for row in rows] == [
        ("Translate.\n\ntwo cats", "zwei Katzen"),
        ("Tell a joke.", "Knock."),
        ("Tell a joke.", "Knock."),
    ]
    note = "Alpaca: prompt is 'instruction', a blank line and 'input'; reference is 'output'"
    assert {row.notes for row in rows} == {(note,)}


def test_the_context_of_an_instruction_is_not_dropped_either():
    (row,) = mapped({"instruction": "Who?", "context": "It was Ada.", "response": "Ada"})
    assert row.values["prompt"] == "Who?\n\nIt was Ada."
    assert "reference" not in row.values


def test_columns_of_ones_own_win_over_those_of_a_layout():
    row = {"instruction": "a", "input": "b", "output": "c", "reference": "r", "gold": "g", "prompt": "p"}
    assert mapped(row)[0].values["prompt"] == "p"
    assert mapped(row)[0].values["reference"] == "r"
    del row["prompt"]
    assert mapped(row, reference_column="gold")[0].values["reference"] == "g"
    (named,) = mapped(row, prompt_column="instruction")
    assert named.values["prompt"] == "a"
    assert named.notes == (
        "'input' is no part of the prompt; leave data.prompt_column out to have it after 'instruction'",
    )


def test_an_alpaca_row_whose_input_is_no_text_is_named():
    good = {"instruction": "a", "input": "b", "output": "c"}
    assert mapped(good, good | {"input": 3})[1].problem == "input must be text, got int"
    assert mapped(good, {"text": "x"})[1].problem == "no 'prompt'"


def test_a_hint_says_what_it_would_leave_out():
    with pytest.raises(InputError) as caught:
        mapped({"id": 1, "question": "q", "context": "c", "answer": "a"})
    assert str(caught.value).endswith(
        "Did you mean data.prompt_column: question? It leaves out 'context'; to have both in the prompt, join them in "
        "one column."
    )


def test_a_hint_without_a_known_name_is_the_column_with_the_longest_texts():
    with pytest.raises(InputError, match=r"Did you mean data\.prompt_column: body\?"):
        mapped({"key": "a7", "body": "some longer words"}, {"key": "a8", "body": "and others"})


SHAREGPT = [
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "hello"},
    {"from": "human", "value": "bye"},
    {"from": "gpt", "value": "see you"},
]


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_sharegpt_turns_are_messages(column):
    (row,) = mapped({column: SHAREGPT})
    assert row.values["prompt"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
    assert row.values["reference"] == "see you"


def test_sharegpt_turns_in_a_column_of_prompts_are_all_of_the_prompt_and_the_last_is_continued():
    (row,) = mapped({"prompt": SHAREGPT})
    assert [turn["content"] for turn in row.values["prompt"]] == ["hi", "hello", "bye", "see you"]
    assert "reference" not in row.values


def test_a_system_column_beside_sharegpt_turns_is_the_first_turn():
    (row,) = mapped({"system": "Be kind.", "conversations": SHAREGPT[:1]})
    assert row.values["prompt"][0] == {"role": "system", "content": "Be kind."}


def test_text_parts_of_a_content_are_joined_and_others_are_named():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?", "image_url": None}]
    image = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    reply = {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}
    rows = mapped(
        {"messages": [{"role": "user", "content": parts}, reply]},
        {"messages": [{"role": "user", "content": image}, reply]},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": ["a cat"]}]},
    )
    assert rows[0].values["prompt"] == [{"role": "user", "content": "What is this?"}]
    assert rows[0].values["reference"] == "a cat"
    assert rows[1].problem == "message 1 holds a part of type 'image_url', and only parts of text are read"
    assert rows[2].problem == "message 2 holds a part of type 'str', and only parts of text are read"
    (given,) = mapped({"prompt": "p", "completion": [reply]})
    assert given.values["reference"] == "a cat"


def test_a_turn_that_only_calls_tools_has_an_empty_content_and_one_without_calls_is_named():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    turns = [{"role": "user", "content": "x"}, call, {"role": "user", "content": "y"}]
    rows = mapped({"messages": turns}, {"messages": [turns[0], call | {"tool_calls": None}, turns[2]]})
    assert rows[0].values["prompt"][1] == call | {"content": ""}
    assert rows[1].problem == "message 2 has no text as its 'content'"


@pytest.mark.parametrize("text", [json.dumps(SHAREGPT), str([{"role": "user", "content": "x"}])])
@pytest.mark.parametrize("column", ["messages", "conversations", "prompt"])
def test_a_conversation_written_as_text_is_not_trained_on_as_it_is_spelt(column, text):
    assert mapped({column: text})[0].problem == (
        f"{column} is a conversation written as text; give it as a list of messages, in JSON or Parquet"
    )


def test_pairs_of_instructions_and_of_sharegpt_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"}))
    assert pair_rows(str(path))[0].values["prompt"] == "a\n\nb"
    turns = {"chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "d"}}
    path.write_text(json.dumps({"conversations": SHAREGPT[:3], **turns}))
    (row,) = pair_rows(str(path))
    assert (row.values["chosen"], row.values["rejected"]) == ("c", "d")
    assert row.values["prompt"][-1] == {"role": "user", "content": "bye"}


def test_what_was_recognised_is_in_the_report_of_the_rows():
    rows = mapped({"instruction": "city", "input": "lyon", "output": "lyon"})
    _, report = encode(rows, tiny.policy("llama").tokenizer)
    assert report.notes == [
        "Alpaca: prompt is 'instruction', a blank line and 'input'; reference is 'output'"
    ]


def test_a_reference_that_has_another_name_is_suggested_and_never_the_prompt():
    row = {"prompt": "p", "answer": "a"}
    with pytest.raises(
        InputError, match=r"found 'prompt', 'answer'\. Did you mean data\.reference_column: answer\?"
    ):
        mapped(row, need_reference=True)
    with pytest.raises(InputError) as caught:
        mapped({"prompt": "p"}, reference_column="zzz")
    assert str(caught.value) == "no 'zzz' column; found 'prompt'."
    alpaca = {"instruction": "a", "input": "b", "output": "c"}
    assert mapped(alpaca, need_reference=True)[0].values["reference"] == "c"
