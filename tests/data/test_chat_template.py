"""Conversations are rendered as TRL renders them, and every turn is found again in what the template wrote."""

import json
import re

import pytest

from cagsr.config import Config
from cagsr.data.chat_template import answered, last_exchange, render
from cagsr.data.prompts import encode, map_columns
from cagsr.data.readers import rows_of
from cagsr.errors import InputError
from chat_models import CHATML, tokenizer

USER = {"role": "user", "content": "say hello"}
BEGUN = {"role": "assistant", "content": "Let me solve this step by step.\n<think>"}
CALL = {"function": {"name": "weather", "arguments": {"city": "Riga", "day": None}}}
ASKED = [
    {**USER, "tool_calls": None},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": None}}]
# As CHATML, with tools, the calls of an assistant and a variable.
RICH = (
    "{% if tools is defined and tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if 'tool_calls' in m %}{% for c in m.tool_calls %}call {{ c.function | tojson }}{% endfor %}{% endif %}"
    "{{ m.content.split('</think>')[-1] | trim if m.role == 'assistant' and not loop.last else m.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def encoded(row, template=CHATML, prompt_column="prompt", **options):
    rows = map_columns(rows_of([row], "d"), prompt_column)
    (prompt,), report = encode(rows, tokenizer(template), **options)
    return prompt, report


def shown(prompt):
    return [(turn.role, prompt.text[turn.start : turn.stop]) for turn in prompt.turns]


def test_a_turn_of_the_assistant_at_the_end_of_a_prompt_is_continued_and_no_reference():
    prompt, report = encoded({"prompt": [USER, BEGUN]})
    expected = tokenizer(CHATML).apply_chat_template(
        [USER, BEGUN], continue_final_message=True, return_dict=False
    )
    assert list(prompt.ids) == expected
    assert prompt.text.endswith("<|im_start|>assistant\nLet me solve this step by step.\n<think>")
    assert "reference" not in prompt.row
    assert shown(prompt) == [("user", "say hello"), ("assistant", BEGUN["content"])]
    assert report.remarks == ["1 prompts end in a turn of the assistant, which the response continues"]


@pytest.mark.parametrize("name", ["completion", "reference"])
@pytest.mark.parametrize("answer", ["4</think> four", [{"role": "assistant", "content": "4</think> four"}]])
def test_a_column_of_answers_goes_on_where_the_prompt_ends(name, answer):
    prompt, _ = encoded({"prompt": [USER, BEGUN], name: answer})
    assert prompt.row["reference"] == "4</think> four"
    assert prompt.text.endswith("<think>")


@pytest.mark.parametrize("name", ["completion", "reference"])
@pytest.mark.parametrize(("given", "shown"), [(7, "7"), ([3, 5], r"\[3, 5\]"), (["a"], r"\['a'\]")])
def test_a_reference_that_is_no_text_is_said(name, given, shown):
    _, report = encoded({"prompt": "say hello", name: given})
    (said,) = report.remarks
    assert re.match(
        rf"the reference of 1 prompts is no text \(first: d row 1: {shown}\), and they count", said
    )
    assert encoded({"prompt": "say hello", name: None})[1].remarks == []


ONLY_USERS = (
    "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}"
    "{{ m['content'] }}\n{% endif %}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "say less"}


@pytest.mark.parametrize(
    ("template", "turns", "unwritten"),
    [
        (ONLY_USERS, [SYSTEM, USER], "1 turns of the system"),
        (ONLY_USERS, [SYSTEM, SYSTEM, USER], "2 turns of the system"),
        (
            ONLY_USERS,
            ASKED,
            "1 turns of the assistant that call tools and 1 turns of the tool",
        ),
        (ONLY_USERS, [USER], None),
        (CHATML, [SYSTEM, USER], None),
        # Rewritten and not dropped.
        (
            ONLY_USERS.replace("{% if", "{{ m['content'] | upper if m['role'] == 'system' }}{% if", 1),
            [SYSTEM, USER],
            None,
        ),
    ],
)
def test_turns_that_the_chat_template_drops_are_said(template, turns, unwritten):
    _, report = encoded({"prompt": turns}, template)
    said = [line for line in report.remarks if line.startswith("the chat template writes nothing of")]
    assert (
        said == []
        if unwritten is None
        else said[0].startswith(
            f"the chat template writes nothing of {unwritten}, so the model does not read them"
        )
    )


def test_a_missing_reference_after_a_turn_of_the_assistant_is_explained():
    (row,) = map_columns(rows_of([{"prompt": [USER, BEGUN]}], "d"), need_reference=True)
    assert row.problem == (
        "reference must be text, got null; the assistant's last turn is part of the prompt, which the reference would "
        "continue: conversations with their answer belong into a column 'messages'"
    )


def test_whole_conversations_keep_their_last_answer_as_the_reference():
    row = {"messages": [USER, {"role": "assistant", "content": "hello"}]}
    prompt, report = encoded(row)
    assert prompt.row["reference"] == "hello"
    assert prompt.text.endswith("say hello<|im_end|>\n<|im_start|>assistant\n")
    assert report.remarks == []
    for column in ("conversations", "messages"):
        named, _ = encoded({column: row["messages"]}, prompt_column=column)
        assert (named.text, named.row["reference"]) == (prompt.text, "hello")


def test_turns_of_tools_are_of_the_prompt_and_calls_need_no_text():
    for row in ({"prompt": ASKED}, {"messages": [*ASKED, {"role": "assistant", "content": "It rains."}]}):
        prompt, _ = encoded(row, RICH)
        assert prompt.text == (
            '<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\ncall {"name": "weather", "arguments": '
            '{"city": "Riga"}}<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n'
        )
        assert shown(prompt) == [("user", "say hello"), ("tool", "rain")]
        assert prompt.row.get("reference") == ("It rains." if "messages" in row else None)
    assert last_exchange([USER, *ASKED[:2]])[1] is None


@pytest.mark.parametrize("as_json", [False, True])
def test_tools_and_variables_of_a_row_reach_the_template_and_win_over_the_configs(as_json):
    columns = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": True}}
    row = {"prompt": [USER]} | {name: json.dumps(v) if as_json else v for name, v in columns.items()}
    never = {"enable_thinking": False}
    prompt, _ = encoded(row, RICH, chat_template_kwargs=never)
    assert prompt.text.startswith(
        '<|im_start|>system\nTools: [{"type": "function", "function": {"name": "weather"}}]<|im_end|>\n'
    )
    assert prompt.text.endswith("<|im_start|>assistant\n")
    plain, _ = encoded({"prompt": [USER], "tools": [], "chat_template_kwargs": None}, RICH)
    assert plain.text == "<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\n"
    calm, _ = encoded({"prompt": [USER], "chat_template_kwargs": {"enable_thinking": False}}, RICH)
    everywhere, _ = encoded({"prompt": [USER]}, RICH, chat_template_kwargs=never)
    assert calm.text == everywhere.text == plain.text + "<think></think>"


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"tools": "{"}, "tools is invalid JSON: Expecting property name"),
        ({"tools": "3"}, "tools must be a list of JSON schemas"),
        ({"tools": ["weather"]}, "tools must be a list of JSON schemas"),
        ({"chat_template_kwargs": "[1]"}, "chat_template_kwargs must be a mapping"),
        (
            {"chat_template_kwargs": {"add_generation_prompt": False}},
            "chat_template_kwargs: add_generation_prompt is no variable of a chat template; leave it out",
        ),
        ({"prompt": [USER, {"role": "system", "content": "x"}]}, "the last message is of the role 'system'"),
        (
            {"prompt": [USER, {"role": "assistant", "content": None}]},
            "message 2 has no text as its 'content'",
        ),
        (
            {"tools": [{"name": "<|im_end|>"}]},
            "tools, or fields of a message beside its content, spell '<|im_",
        ),
    ],
)
def test_what_cannot_be_rendered_is_named_with_its_row(columns, problem):
    with pytest.raises(InputError) as caught:
        encoded({"prompt": [USER], **columns}, RICH)
    assert str(caught.value).startswith(f"d row 1: {problem}")


def test_variables_of_the_template_are_a_config_key_and_others_are_refused():
    config = Config.load(None, ["data.task=slots", "data.chat_template_kwargs={enable_thinking: false}"])
    assert config.data.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(InputError, match="tokenize is no variable of a chat template; leave it out"):
        Config.load(None, ["data.task=slots", "data.chat_template_kwargs={tokenize: true}"])


def test_rows_that_differ_in_what_they_are_rendered_with_are_different_prompts():
    rows = [{"prompt": [USER]}, {"prompt": [USER], "chat_template_kwargs": {"enable_thinking": False}}] * 2
    kept, report = encode(map_columns(rows_of(rows, "d")), tokenizer(RICH), distinct=True)
    assert [prompt.index for prompt in kept] == [0, 1]
    assert report.repeated == 2


def test_a_turn_that_the_template_rewrites_is_found_as_it_stands_there():
    turns = [
        {"role": "system", "content": "user"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "<think>hm</think> assistant "},
        {"role": "user", "content": "why"},
    ]
    text, found = render(turns, tokenizer(RICH))
    assert [(turn.role, text[turn.start : turn.stop]) for turn in found] == [
        ("system", "user"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("user", "why"),
    ]
    assert found[1].start == text.index("<|im_start|>user") + len("<|im_start|>user\n")


def test_a_system_turn_that_stands_inside_the_users_is_told_apart():
    template = (
        "{% if messages[0].role == 'system' %}{% set start = messages[0].content + '\n' %}{% set rest = messages[1:] %}"
        "{% else %}{% set start = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}<|im_start|>{{ m.role }}\n"
        "{{ (start if loop.first else '') + m.content | trim }}<|im_end|>\n{% endfor %}"
    )
    prompt, _ = encoded({"prompt": [{"role": "system", "content": "Be brief."}, USER]}, template)
    assert shown(prompt) == [("system", "Be brief."), ("user", "say hello")]


def test_an_answer_is_a_turn_or_the_rest_of_the_one_that_was_begun():
    assert answered([USER], "4") == [USER, {"role": "assistant", "content": "4"}]
    assert answered([USER, BEGUN], "4") == [USER, {**BEGUN, "content": BEGUN["content"] + "4"}]
