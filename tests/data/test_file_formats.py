"""Files are read by what they hold: separators, encodings and JSON documents are recognised, and what is, is said."""

import json

import datasets
import pytest

import tiny
from cagsr.data.prompts import encode, map_columns
from cagsr.data.readers import read
from cagsr.errors import InputError

ROWS = [{"id": "5", "prompt": "Write a headline; short"}, {"id": "7", "prompt": "Write, say, a poem"}]
TABS = "id\tprompt\n5\tWrite a headline; short\n7\tWrite, say, a poem\n"
SEMICOLONS = 'id;prompt\n5;"Write a headline; short"\n7;Write, say, a poem\n'
HEADLESS = "no 'prompt' column; found {}. Is the header line missing?"


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def told(path):
    rows = read(path)
    return [dict(row.values) for row in rows], {note for row in rows for note in row.notes}


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("d.csv", SEMICOLONS, "columns separated by semicolons"),
        ("D.CSV", SEMICOLONS, "columns separated by semicolons"),
        ("d.csv", "sep=;\r\n" + SEMICOLONS.replace("\n", "\r\n"), "columns separated by semicolons"),
        ("d.csv", SEMICOLONS.replace("id;prompt", '"id";"prompt"'), "columns separated by semicolons"),
        ("d.csv", "id|prompt\n5|Write a headline; short\n7|Write, say, a poem\n", "columns separated by vertical bars"),
        ("d.csv", TABS, "columns separated by tabs"),
        ("d.tsv", TABS, None),
        ("d.tsv", SEMICOLONS, "columns separated by semicolons"),
        ("d.csv", 'id,prompt\n5,Write a headline; short\n7,"Write, say, a poem"\n', None),
        ("d.csv", SEMICOLONS.encode("utf-8-sig"), "columns separated by semicolons"),
        ("d.tsv", TABS.encode("utf-16"), "encoding UTF-16"),
        ("d.tsv", TABS.encode("utf-16-le"), "encoding UTF-16-LE"),
        ("d.json", json.dumps(ROWS, indent=1), None),
        ("d.json", json.dumps({"version": "1", "data": ROWS}), "rows under the key 'data'"),
        ("d.json", "".join(json.dumps(row) + "\n" for row in ROWS), "JSON lines: an object a line"),
        ("d.jsonl", json.dumps(ROWS, indent=1), None),
        ("d.ndjson", "".join(json.dumps(row) + "\n" for row in ROWS), None),
        ("d.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16"), "encoding UTF-16"),
    ],
)  # fmt: skip
def test_the_same_rows_are_read_from_every_format_and_a_guess_is_told(tmp_path, name, content, note):
    assert told(file(tmp_path, name, content)) == (ROWS, {note} if note else set())


def test_arrow_files_of_datasets_and_of_others_are_read(tmp_path):
    import pyarrow

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    with pyarrow.OSFile(str(tmp_path / "table.arrow"), "wb") as sink:
        table = pyarrow.Table.from_pylist(ROWS)
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    assert told(str(stream)) == told(str(tmp_path / "table.arrow")) == (ROWS, set())


def test_a_header_of_one_column_is_separated_as_its_name_says(tmp_path):
    assert told(file(tmp_path, "d.tsv", "prompt\nfirst, second; third\n")) == (
        [{"prompt": "first, second; third"}],
        set(),
    )
    (row,) = read(file(tmp_path, "d.csv", "prompt\nfirst, second; third\n"))
    assert row.problem == "2 cells under 1 columns; quote a cell that holds ','"


def test_separators_within_quotes_are_no_separators(tmp_path):
    path = file(tmp_path, "d.csv", '"a;b;c;\n;d",prompt\n"1,5",x\n')
    assert told(path) == ([{"a;b;c;\n;d": "1,5", "prompt": "x"}], set())


def test_decimal_commas_leave_the_semicolons_separators(tmp_path):
    path = file(tmp_path, "d.csv", "price;prompt\n1,5;x\n2,5;y, z\n")
    assert told(path)[0] == [{"price": "1,5", "prompt": "x"}, {"price": "2,5", "prompt": "y, z"}]


def test_rows_under_a_separator_line_are_numbered_as_an_editor_shows_them(tmp_path):
    rows = read(file(tmp_path, "d.csv", "sep=;\nid;prompt\n5;x\n"))
    assert [row.place.split()[-1] for row in rows] == ["3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", "{'prompt': 'x'}", "d.json: invalid JSON at column 2: "),
        ("d.json", '[\n{"prompt": "x"},\n{"prompt": "y"}\n', "d.json: invalid JSON at line 4 column 1: "),
        ("d.json", '"x"', "d.json: expected a list of rows, got str"),
        ("d.json", '{"prompt": ["x", "y"]}', "d.json: expected a list of rows, [{...}, ...], got columns"),
        ("d.json", '{"prompt": {"0": "x"}}', "d.json: expected a list of rows, [{...}, ...], got columns"),
        ("d.json", '{"data": []}', "d.json: expected a list of rows, [{...}, ...], got columns or an empty table"),
        ("d.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', "d.json: rows are under several keys: 'train', 'test'"),
        ("d.json", '[{"prompt": "x", "prompt": "y"}]', "d.json: invalid JSON: the key 'prompt' twice"),
        ("d.json", "", "the data set is empty"),
        ("d.json", '["x"]', "d.json row 1: expected a JSON object, got str"),
        ("d.tsv", b"prompt\n\xe9t\xe9\n", "d.tsv:2 is not UTF-8. Save the file as UTF-8"),
        ("d.csv", b"\xff\xfep", "d.csv is neither UTF-8 nor UTF-16. Save the file as UTF-8."),
        ("d.arrow", "ARROW1", "d.arrow: damaged Arrow file"),
        ("d.arrow", "x", "d.arrow: damaged Arrow file"),
        ("d.xlsx", "PK", "d.xlsx: unknown format; "),
        ("d.txt", "x", "d.txt: unknown format; "),
        ("d.csv", "5,Write a headline\n7,Write a poem\n", HEADLESS.format("'5', 'Write a headline'")),
        ("d.csv", "Write a headline please\nWrite a poem\n", HEADLESS.format("'Write a headline please'")),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_explained_with_the_mend(tmp_path, name, content, message):
    with pytest.raises(InputError) as caught:
        encode(map_columns(read(file(tmp_path, name, content))), tiny.policy("llama").tokenizer)
    said = str(caught.value).replace(f"{tmp_path}/", "")
    assert said.startswith(message)
    assert "Did you mean" not in said


def test_the_mend_of_a_text_file_makes_a_file_that_is_read(tmp_path, monkeypatch):
    import subprocess

    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE.txt").write_text('Say "yes", please\n\nzwölf\n')
    with pytest.raises(InputError) as caught:
        read("FILE.txt")
    command = str(caught.value).partition("JSONL by: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert told("FILE.jsonl")[0] == [{"prompt": 'Say "yes", please'}, {"prompt": "zwölf"}]


def test_one_object_is_one_row_and_a_conversation_no_table(tmp_path):
    turns = [{"role": "user", "content": "x"}]
    assert told(file(tmp_path, "d.json", json.dumps({"messages": turns}))) == ([{"messages": turns}], set())
    assert told(file(tmp_path, "d.json", '{"prompt": "x"}')) == ([{"prompt": "x"}], set())


@pytest.mark.parametrize("header", [" prompt,reference ", "prompt , reference"])
def test_spaces_around_the_names_of_columns_are_left_out_and_said(header, tmp_path):
    path = file(tmp_path, "d.csv", f"{header}\n one , eins\n")
    note = "spaces around the names of columns are left out"
    assert told(path) == ([{"prompt": " one ", "reference": " eins"}], {note})
    with pytest.raises(InputError, match="the header names a column twice: prompt, prompt"):
        read(file(tmp_path, "d.csv", "prompt, prompt\na,b\n"))


def test_empty_lines_above_a_header_are_skipped_and_rows_keep_their_numbers(tmp_path):
    rows = read(file(tmp_path, "d.csv", "\n\nid,prompt\n5,hello\n7\n"))
    assert dict(rows[0].values) == {"id": "5", "prompt": "hello"}
    assert rows[0].place.endswith("row 4")
    assert rows[1].place.endswith("row 5")
    assert "1 cells under 2 columns" in str(rows[1].problem)
