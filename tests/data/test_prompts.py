import gzip
import json
import re

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cagsr.data.prompts import encode, map_columns, refuse_invalid
from cagsr.data.readers import read, rows_of
from cagsr.errors import InputError

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(chat_template=None):
    """A token a byte, </s> after a plain text: lengths can be counted by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1} | {byte: 2 + i for i, byte in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        name_or_path="bytes",
    )


TOKENIZER = byte_tokenizer()


def prompts(*texts, **options):
    rows = map_columns(rows_of([{"prompt": text} for text in texts], "d"))
    return encode(rows, options.pop("tokenizer", TOKENIZER), **options)


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        encode(map_columns(read(str(path)), **options), TOKENIZER)
    return str(caught.value).replace(f"{path.parent}/", "")


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def content(prompt):
    return [prompt.text[start:end] for start, end in prompt.content]


ROWS = [{"prompt": "one", "reference": "eins"}, {"prompt": "two", "reference": "zwei"}]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_every_source_gives_the_same_rows(tmp_path):
    text = "prompt,reference\none,eins\ntwo,zwei\n"
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "d.parquet"))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "splits"))
    sources = [
        (file(tmp_path, "d.jsonl", JSON_LINES), "train"),
        (file(tmp_path, "d.jsonl.gz", gzip.compress(JSON_LINES.encode())), "train"),
        (file(tmp_path, "bom.jsonl", b"\xef\xbb\xbf" + JSON_LINES.encode()), "train"),
        (file(tmp_path, "crlf.jsonl", JSON_LINES.replace("\n", "\r\n")), "train"),
        (file(tmp_path, "d.csv", text), "train"),
        (file(tmp_path, "d.csv.gz", gzip.compress(text.encode())), "train"),
        (tmp_path / "d.parquet", "train"),
        (tmp_path / "plain", "train"),
        (tmp_path / "splits", "dev"),
    ]
    for source, split in sources:
        assert [dict(row.values) for row in read(str(source), split)] == ROWS, source


def test_rows_are_numbered_as_an_editor_shows_them(tmp_path):
    lines = file(tmp_path, "d.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"}\n')
    sheet = file(tmp_path, "d.csv", 'prompt\n"a\nb"\nc\n')
    assert [row.place.split()[-1] for row in read(str(lines))] == ["1", "3"]
    assert [row.place.split()[-1] for row in read(str(sheet))] == ["2", "3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ""}', "row 2: prompt is empty."),
        ('{"prompt": " \\n\\t"}', "row 2: prompt is empty."),
        ('{"prompt": null}', "row 2: prompt must be text, got null."),
        ('{"prompt": 7.5}', "row 2: prompt must be text, got 7.5."),
        ('{"prompt": true}', "row 2: prompt must be text, got true."),
        ('{"prompt": {"a": 1}}', "row 2: prompt must be text, got a mapping."),
        ('{"text": "x"}', "row 2: no 'prompt'."),
        ('{"prompt": "x"', "row 2: invalid JSON at column 15: Expecting ',' delimiter."),
        ('["x"]', "row 2: expected a JSON object, got list."),
        ('{"prompt": "x", "y": ' + "[" * 64 + "]" * 64 + "}", "row 2: brackets nested more than 64 deep."),
        (
            '{"prompt": "x", "y": ' + '{"z": ' * 900 + "1" + "}" * 901,
            "row 2: brackets nested more than 64 deep.",
        ),
        ("[" * 100_000, "row 2: invalid JSON: a number too long, or brackets too deep."),
        ('{"prompt": "a", "prompt": "b"}', "row 2: invalid JSON: the key 'prompt' twice."),
        ('{"prompt": [{"role": "user", "role": "x"}]}', "row 2: invalid JSON: the key 'role' twice."),
        (b'{"prompt": "\xff"}', "row 2: byte 13 is not UTF-8; save the file as UTF-8."),
        ('{"prompt": "\\ud83d"}', "row 2: prompt holds half of a surrogate pair, which is no character."),
        ('{"prompt": "</s><pad>"}', "row 2: no content tokens: special or unknown tokens only."),
        ('{"prompt": []}', "row 2: no message has the role 'user'."),
        ('{"prompt": [{"role": "user"}]}', "row 2: message 1 has no text as its 'content'."),
        ('{"prompt": [{"role": "user", "content": " "}]}', "row 2: prompt is empty."),
        ('{"prompt": ["hello"]}', "row 2: message 1 has no text as its 'role'."),
    ],
)
def test_a_bad_row_is_named_with_the_mend_or_dropped_and_counted(tmp_path, line, message):
    raw = line if isinstance(line, bytes) else line.encode()
    path = file(tmp_path, "d.jsonl", b'{"prompt": "good"}\n' + raw + b"\n")
    assert refusal(path) == f"d.jsonl {message} Remove it or pass --skip-invalid."
    kept, report = encode(map_columns(read(str(path))), TOKENIZER, skip_invalid=True)
    assert [prompt.text for prompt in kept] == ["good"]
    assert str(report).startswith("1 of 2 rows used; 1 invalid dropped (first: ")


def test_rows_with_many_brackets_that_are_not_nested_are_read(tmp_path):
    slots = [[["a"]] * 3] * 20
    deep = '{"prompt": "x", "y": ' + "[" * 63 + "]" * 63 + "}"
    path = file(tmp_path, "d.jsonl", json.dumps({"prompt": "x", "slots": slots}) + "\n" + deep)
    assert [row.problem for row in read(str(path))] == [None, None]


def test_many_bad_rows_are_told_together_and_the_rest_counted(tmp_path):
    lines = refusal(file(tmp_path, "d.jsonl", '{"prompt": ""}\n' * 13)).splitlines()
    assert len(lines) == 11
    assert lines[9].startswith("d.jsonl row 10: prompt is empty")
    assert lines[10] == "... and 3 more"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", "", "the data set is empty: no rows to use"),
        ("d.csv", "", "the data set is empty"),
        ("d.csv", "prompt\n", "the data set is empty"),
        ("d.csv", "prompt,prompt\na,b\n", "d.csv row 1: the header names a column twice: prompt, prompt"),
        ("d.csv", 'prompt\n"a\n', "d.csv:2 broken CSV"),
        ("d.csv", b"prompt\n\xe9t\xe9\n", "d.csv:2 is not UTF-8"),
        ("d.csv", "prompt,x\na\n", "d.csv row 2: 1 cells under 2 columns."),
        ("d.csv", "prompt,x\n,b\n", "d.csv row 2: prompt is empty."),
        ("d.parquet", "PAR1", "d.parquet: damaged Parquet file"),
        ("d.jsonl.gz", "{}", "d.jsonl.gz: damaged gzip file"),
        ("d.jsonl.gz", gzip.compress(JSON_LINES.encode(), mtime=0)[:-9], "d.jsonl.gz: damaged gzip file"),
        ("d.txt", "hello", "d.txt: unknown format; data files end in .jsonl, .jsonl.gz, .csv"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, name, content, message):
    assert refusal(file(tmp_path, name, content)).startswith(message)


def test_missing_sources_and_splits_are_refused_by_name(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        read(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="not a directory that datasets' save_to_disk wrote"):
        read(str(tmp_path))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match=r"no split 'trian'; did you mean 'train'\?"):
        read(str(tmp_path / "d"), "trian")


def test_a_hub_name_is_loaded_by_datasets_and_its_failure_is_one_message(monkeypatch):
    asked = []

    def load_dataset(name, config_name, split, revision, streaming):
        assert not streaming
        asked.append((name, config_name, split, revision))
        if name == "some/where":
            raise ConnectionError("offline\nand more")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read("an/other", "test", "small", "refs/convert/parquet")
    assert asked == [("an/other", "small", "test", "refs/convert/parquet")]
    assert rows[1].place == "an/other row 2"
    with pytest.raises(InputError) as caught:
        read("some/where")
    assert str(caught.value) == (
        "some/where: no such file or directory here, and not loaded from the hub (split 'train'); "
        "correct data.source: offline"
    )


def test_a_wrong_column_is_answered_by_those_found_and_the_likely_one():
    rows = rows_of([{"id": 3, "summary": "s", "text": "t"}], "d")
    with pytest.raises(InputError) as caught:
        map_columns(rows)
    assert str(caught.value) == (
        "no 'prompt' column; found 'id', 'summary', 'text'. Did you mean data.prompt_column: text?"
    )
    with pytest.raises(InputError, match=r"no 'sumary' column; .* Did you mean data\.reference_column"):
        map_columns(rows, "text", reference_column="sumary")
    with pytest.raises(InputError, match=r"no 'weights' column"):
        map_columns(rows, "text", salience_column="weights")


def test_columns_are_mapped_and_the_rest_of_the_row_is_kept():
    rows = rows_of([{"text": "t", "summary": "s", "reference": "r", "slots": [["a", "b"]]}], "d")
    values = map_columns(rows, "text", "summary")[0].values
    assert values["prompt"] == "t"
    assert values["reference"] == "s"
    assert values["slots"] == [["a", "b"]]
    assert rows[0].values["reference"] == "r"


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"prompt": "p", "completion": "c"}, "c"),
        ({"prompt": "p", "completion": [{"role": "assistant", "content": "c"}]}, "c"),
        ({"prompt": "p", "reference": "r", "completion": "c"}, "r"),
        ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]}, "c"),
        ({"messages": [{"role": "user", "content": "p"}]}, None),
        ({"prompt": "p", "reference": None}, None),
        ({"prompt": "p", "reference": 3}, 3),
    ],
)
def test_references_are_found_where_trl_puts_them(row, reference):
    assert map_columns(rows_of([row], "d"))[0].values.get("reference") == reference


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p"}, "reference must be text, got null"),
        ({"prompt": "p", "reference": 3}, "reference must be text, got 3"),
        ({"prompt": "p", "completion": " "}, "reference is empty"),
        (
            {"prompt": "p", "reference": "\ud800"},
            "reference holds half of a surrogate pair, which is no character",
        ),
    ],
)
def test_a_demanded_reference_must_be_text(row, problem):
    assert map_columns(rows_of([row], "d"), need_reference=True)[0].problem == problem


def test_tokens_offsets_and_content_of_a_plain_prompt():
    (prompt,), report = prompts("ab é")
    assert TOKENIZER.decode(prompt.ids) == "ab é</s>"
    assert prompt.offsets == ((0, 1), (1, 2), (2, 3), (3, 4), (3, 4), (0, 0))
    assert prompt.content == ((0, 4),)
    assert str(report) == "1 of 1 rows used."


@pytest.mark.parametrize("text", ["🎈 party 👩‍👩‍👧", "שלום \u202eabc", "a\0b", "  spaced\r\n", "e\u0301"])
def test_any_text_goes_through_byte_exact(tmp_path, text):
    path = file(tmp_path, "d.jsonl", json.dumps({"prompt": text}))
    (prompt,), _ = encode(map_columns(read(str(path))), TOKENIZER)
    assert prompt.text == text
    assert TOKENIZER.decode(prompt.ids, skip_special_tokens=True) == text


CONVERSATION = [
    {"role": "system", "content": "Be user friendly."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "<think>hm</think>Yes?"},
    {"role": "user", "content": " assistant! "},
    {"role": "assistant", "content": "Here."},
]


def test_content_spans_are_what_the_user_wrote_even_where_the_template_says_the_same():
    rows = map_columns(rows_of([{"messages": CONVERSATION}], "d"))
    (prompt,), _ = encode(rows, byte_tokenizer(CHAT))
    assert prompt.text == (
        "<system>Be user friendly.</s><user>user</s><assistant><think>hm</think>Yes?</s>"
        "<user>assistant!</s><assistant>"
    )
    assert content(prompt) == ["user", "assistant!"]
    assert prompt.content == ((35, 39), (85, 95))
    assert prompt.row["reference"] == "Here."


def test_trap_26_a_conversation_is_rendered_once_and_no_special_token_is_added_again():
    tokenizer = byte_tokenizer(CHAT)
    rows = map_columns(rows_of([{"messages": CONVERSATION}], "d"))
    (prompt,), _ = encode(rows, tokenizer)
    again = tokenizer.apply_chat_template(CONVERSATION[:4], add_generation_prompt=True, return_dict=False)
    assert list(prompt.ids) == again
    assert list(prompt.ids).count(tokenizer.eos_token_id) == 4


def test_trap_26_a_template_that_rewrites_the_users_words_is_refused():
    shouting = byte_tokenizer(CHAT.replace("trim", "upper"))
    rows = map_columns(rows_of([{"messages": CONVERSATION}], "d"))
    with pytest.raises(InputError, match=r"d row 1: the chat template changes what the user wrote\."):
        encode(rows, shouting)


def test_half_a_character_that_a_template_writes_is_refused():
    messages = [{"role": "\ud800", "content": "x"}, {"role": "user", "content": "y"}]
    with pytest.raises(InputError, match=r"d row 1: prompt holds half of a surrogate pair"):
        encode(map_columns(rows_of([{"messages": messages}], "d")), byte_tokenizer(CHAT))


def test_a_template_that_refuses_a_conversation_names_the_row():
    refusing = byte_tokenizer("{{ raise_exception('roles must alternate') }}")
    rows = map_columns(rows_of([{"messages": CONVERSATION}], "d"))
    with pytest.raises(InputError, match=r"d row 1: the chat template refuses .*: roles must alternate\."):
        encode(rows, refusing)


def test_conversations_need_a_chat_template_and_a_fast_tokenizer(monkeypatch):
    rows = map_columns(rows_of([{"messages": CONVERSATION}], "d"))
    with pytest.raises(InputError, match="bytes has no chat template, which conversational data need"):
        encode(rows, TOKENIZER, skip_invalid=True)
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(InputError, match="bytes is a slow tokenizer"):
        prompts("a")


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers():
    # 5 bytes and </s> are 6 tokens.
    with pytest.raises(
        InputError, match=re.escape("d row 2: 6 prompt + 3 new tokens > 8 context. Set data.max")
    ):
        prompts("abcd", "abcde", context=8, new_tokens=3)
    with pytest.raises(InputError, match=re.escape("d row 2: 6 prompt tokens > 5 data.max_prompt_tokens")):
        prompts("abcd", "abcde", max_prompt_tokens=5, skip_invalid=True)
    with pytest.raises(InputError, match="7 new tokens leave no room for a prompt in 7 context"):
        prompts("a", context=7, new_tokens=7)
    assert len(prompts("abcd", "abcde", context=8, new_tokens=2)[0]) == 2


def test_overlong_prompts_are_dropped_or_cut_as_asked_and_counted():
    kept, report = prompts("abc", "abcdefg", max_prompt_tokens=5, overlong="drop")
    assert [(prompt.text, prompt.index) for prompt in kept] == [("abc", 0)]
    assert str(report) == "1 of 2 rows used; 1 too long dropped."
    for overlong, text in (("truncate_left", "defg"), ("truncate_right", "abcd")):
        kept, report = prompts("abc", "abcdefg", max_prompt_tokens=5, overlong=overlong)
        assert kept[1].text == text
        assert TOKENIZER.decode(kept[1].ids) == text + "</s>"
        assert kept[1].offsets == ((0, 1), (1, 2), (2, 3), (3, 4), (0, 0))
        assert kept[1].content == ((0, 4),)
        assert str(report) == "2 of 2 rows used; 1 truncated."


@pytest.mark.parametrize(
    ("overlong", "text", "written"),
    [
        ("truncate_left", "<user></s><assistant>ok</s><user>fghijkl</s><assistant>", ["fghijkl"]),
        ("truncate_right", "<user>abcde</s><assistant>ok</s><user>fg</s><assistant>", ["abcde", "fg"]),
    ],
)
def test_truncation_cuts_what_the_user_wrote_and_never_the_template(overlong, text, written):
    messages = [
        {"role": "user", "content": "abcde"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "fghijkl"},
    ]
    tokenizer = byte_tokenizer(CHAT)
    rows = map_columns(rows_of([{"messages": messages}], "d"))
    (whole,), _ = encode(rows, tokenizer)
    (prompt,), _ = encode(rows, tokenizer, max_prompt_tokens=len(whole.ids) - 5, overlong=overlong)
    assert tokenizer.decode(prompt.ids) == prompt.text == text
    assert content(prompt) == written
    assert all(
        tokenizer.decode([token]) == prompt.text[start:end]
        for token, (start, end) in zip(prompt.ids, prompt.offsets, strict=True)
    )
    with pytest.raises(InputError, match=r"none of 1 rows can be used: 0 of 1 rows used; 1 too long dropped"):
        encode(rows, tokenizer, max_prompt_tokens=len(whole.ids) - 12, overlong=overlong)


@pytest.mark.parametrize(
    ("overlong", "limit", "text"),
    [
        ("truncate_left", 4, "éb"),
        ("truncate_left", 3, "b"),
        ("truncate_left", 2, "b"),
        ("truncate_right", 4, "aé"),
        ("truncate_right", 3, "a"),
        ("truncate_right", 2, "a"),
    ],
)
def test_a_character_of_several_tokens_is_cut_whole(overlong, limit, text):
    # a, é and b are 1, 2 and 1 tokens, and </s> is one more.
    (prompt,), _ = prompts("aéb", max_prompt_tokens=limit, overlong=overlong)
    assert prompt.text == text
    assert TOKENIZER.decode(prompt.ids) == text + "</s>"


def test_duplicates_are_counted_and_kept():
    kept, report = prompts(*["same"] * 31, "other", "same")
    assert len(kept) == 33
    assert str(report) == "33 of 33 rows used; 31 of 33 rows are duplicates."


def test_distinct_prompts_keep_the_first_row_of_each_and_count_the_rest():
    rows = rows_of([{"prompt": text[0], "reference": text} for text in ("b", "a", "b!", "c", "a", "b!")], "d")
    kept, report = encode(map_columns(rows), byte_tokenizer(), distinct=True)
    assert [(prompt.text, prompt.index) for prompt in kept] == [("b", 0), ("a", 1), ("c", 3)]
    assert str(report) == (
        "3 of 6 rows used; 3 repeat the prompt of an earlier row, dropped; 2 of 6 rows are duplicates."
    )


def test_dropped_rows_are_listed_and_many_duplicates_warned_of():
    _, report = prompts("a", *[""] * 11, skip_invalid=True)
    assert report.warnings() == [
        *(f"dropped d row {row}: prompt is empty." for row in range(2, 12)),
        "... and 1 more",
    ]
    assert prompts("a", "a", "b", "c")[1].warnings() == []
    assert prompts("a", "a", "a", "c")[1].warnings() == ["2 of 4 rows are duplicates"]


def test_what_needs_no_tokenizer_is_refused_without_one():
    rows = map_columns(rows_of([{"prompt": "a"}, {"prompt": ""}], "d"))
    refuse_invalid(rows, skip_invalid=True)
    with pytest.raises(InputError) as caught:
        refuse_invalid(rows)
    assert str(caught.value) == "d row 2: prompt is empty. Remove it or pass --skip-invalid."
    with pytest.raises(InputError, match=r"none of 1 rows can be used: 0 of 1 rows used; 1 invalid"):
        refuse_invalid(rows[1:], skip_invalid=True)


def test_the_columns_found_are_searched_for_the_one_that_was_meant():
    rows = rows_of([{"text": "t", "summary": "s", "answers": "a"}], "d")
    with pytest.raises(
        InputError, match=r"no 'Sumary' column; .* Did you mean data\.prompt_column: summary\?"
    ):
        map_columns(rows, "Sumary")
    with pytest.raises(
        InputError, match=r"no 'answer' column; .* Did you mean data\.reference_column: answers\?"
    ):
        map_columns(rows, "text", reference_column="answer")


def test_a_data_set_without_a_usable_row_is_never_done():
    with pytest.raises(InputError, match=r"none of 2 rows can be used: 0 of 2 rows used; 2 invalid"):
        prompts("", " ", skip_invalid=True)
    with pytest.raises(InputError, match="the data set is empty"):
        map_columns([])


def test_a_prompt_keeps_its_place_when_rows_before_it_are_dropped():
    kept, _ = prompts("", "a", "", "b", skip_invalid=True)
    assert [prompt.index for prompt in kept] == [1, 3]
