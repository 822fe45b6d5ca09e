"""IFEval: instructions that are followed or not, by hand."""

import sys

import pytest

from cagsr.config import Config
from cagsr.data.readers import rows_of
from cagsr.errors import InputError
from cagsr.evaluation.metrics_from_config import check_rows
from cagsr.metrics.ifeval import ifeval

CONFIG = Config.load(None, ["data.task=slots", "metrics.ifeval=true"])
COUNT = {"keyword": "sky", "frequency": 2, "relation": "at least"}
ROW = {
    "prompt": "Name a colour, without commas, and say the word sky twice.",
    "instruction_id_list": ["punctuation:no_comma", "keywords:frequency"],
    "kwargs": [{}, COUNT | {"num_words": None}],
}


@pytest.fixture(scope="module")
def measure():
    pytest.importorskip("if_verifiable")
    return ifeval()


@pytest.mark.parametrize(
    ("response", "strict", "loose", "share"),
    [
        ("Blue sky and sky.", 1, 1, 1),
        ("Blue, as the sky.", 0, 0, 0),
        ("Blue, sky and sky.", 0, 0, 0.5),
        ("Sure, here it is:\nBlue sky and sky.", 0, 1, 0.5),
        ("", 0, 0, 0),
    ],
)
def test_a_response_follows_all_some_or_none_of_its_instructions(measure, response, strict, loose, share):
    found = {"ifeval_strict": strict, "ifeval_loose": loose, "ifeval_instructions": share}
    assert measure(ROW, response) == found
    assert measure(ROW | {"prompt": [{"role": "user", "content": ROW["prompt"]}]}, response) == found


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"kwargs": [{}]}, "no instruction_id_list and kwargs of one length, which rows of IFEval have"),
        ({"instruction_id_list": None}, "no instruction_id_list and kwargs of one length"),
        ({"instruction_id_list": ["a:b", "punctuation:no_comma"]}, "'a:b' is no instruction of IFEval"),
        ({"kwargs": [{}, None]}, "kwargs of 'keywords:frequency' lack keyword, frequency, relation"),
        ({"kwargs": [{}, COUNT | {"relation": None}]}, "kwargs of 'keywords:frequency' lack relation"),
        ({"kwargs": [{}, "{}"]}, "kwargs of 'keywords:frequency' are no mapping: '{}'"),
        ({"kwargs": [{}, COUNT | {"wrong": 1}]}, "not to be read as a row of IFEval: TypeError.*'wrong'"),
        ({"kwargs": [{}, COUNT | {"keyword": 3}]}, "not to be read as a row of IFEval: AttributeError"),
        ({"prompt": [{"role": "user"}]}, r"not to be read as a row of IFEval: KeyError\('content'\)"),
    ],
)
def test_a_row_of_another_kind_is_refused_with_its_place_before_a_model_is_loaded(measure, changes, why):
    check_rows(CONFIG, rows_of([ROW], "d.jsonl"))
    with pytest.raises(InputError, match=rf"^metrics\.ifeval: d\.jsonl row 2: {why}"):
        check_rows(CONFIG, rows_of([ROW, ROW | changes], "d.jsonl"))


def test_data_that_nltk_lacks_are_named_with_the_command(measure, monkeypatch):
    import nltk

    row = {"prompt": "Two sentences.", "instruction_id_list": ["length_constraints:number_sentences"]}
    row |= {"kwargs": [{"num_sentences": 2, "relation": "at least"}]}
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(
        InputError, match=r"number_sentences counts by nltk, .*: python -m nltk.downloader punkt_tab"
    ):
        measure(row, "One. Two.")


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "if_verifiable.common", None)
    with pytest.raises(InputError, match=r"pip install if-verifiable, or set metrics\.ifeval to false"):
        ifeval()
    check_rows(Config.load(None, ["data.task=slots"]), rows_of([{}], "d"))
