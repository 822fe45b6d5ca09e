"""The clock of chat templates: one moment for a block, that of the block around it before all."""

from datetime import datetime

import pytest

import tiny
from cagsr.io import template_date
from cagsr.io.template_date import moment, pinned_date


class Days:
    """A clock that is a day further at each look."""

    fromisoformat = datetime.fromisoformat

    def __init__(self):
        self.day = 0

    def now(self, tz):
        self.day += 1
        return datetime(2026, 11, self.day, 23, 59, 59, 999_999)


@pytest.fixture(autouse=True)
def days(monkeypatch):
    monkeypatch.setattr(template_date, "datetime", Days())


@pytest.fixture
def written(monkeypatch):
    """``written("%d")``: what transformers' own rendering makes of it in a template."""
    tokenizer = tiny._tokenizer("causal")

    def render(format: str) -> str:
        template = "{{ strftime_now('" + format + "') }}"
        return tokenizer.apply_chat_template([{"role": "user"}], chat_template=template, tokenize=False)

    return render


def test_within_a_block_it_is_one_moment(written):
    assert [written("%d %b %Y"), written("%d %b %Y")] == ["01 Nov 2026", "02 Nov 2026"]
    with pinned_date():
        assert moment() == "2026-11-03T23:59:59"
        assert written("%Y-%m-%dT%H:%M:%S.%f%Z") == "2026-11-03T23:59:59.000000"
        with pinned_date("2020-02-29T01:02:03"):
            assert moment() == "2026-11-03T23:59:59"
    with pinned_date("2020-02-29T01:02:03"):
        assert (moment(), written("%d.%m.%y")) == ("2020-02-29T01:02:03", "29.02.20")
    assert written("%d") == "04"


def test_a_function_under_it_sees_one_moment_and_each_call_another(written):
    @pinned_date()
    def twice():
        return written("%d"), written("%d")

    assert [twice(), twice()] == [("01", "01"), ("02", "02")]
