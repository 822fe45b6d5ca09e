"""`~` and `$VARIABLE` in paths stand for what a shell puts in their place, or are named."""

import pytest

from cagsr.errors import InputError
from cagsr.io.places import expanded


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("SCRATCH", "/scratch/7")
    monkeypatch.delenv("NOWHERE", raising=False)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("~", "/home/anna"),
        ("~/runs/x", "/home/anna/runs/x"),
        ("$SCRATCH/x", "/scratch/7/x"),
        ("${SCRATCH}y/x", "/scratch/7y/x"),
        ("$HOME/${SCRATCH}", "/home/anna//scratch/7"),
        ("runs/x", "runs/x"),
        ("runs/~x/a~", "runs/~x/a~"),
        ("price$/x$1", "price$/x$1"),  # no name of a variable
        ("google/flan-t5-small", "google/flan-t5-small"),
    ],
)
def test_a_path_is_what_a_shell_would_make_of_it(written, meant):
    assert expanded(written) == meant
    assert expanded(expanded(written)) == meant


def test_what_exists_under_the_very_name_is_meant(tmp_path):
    (tmp_path / "a$NOWHERE").touch()
    assert expanded("a$NOWHERE") == "a$NOWHERE"


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("$NOWHERE/x", "the variable 'NOWHERE' is not set"),
        ("x/${NOWHERE}", "the variable 'NOWHERE' is not set"),
        ("${}/x", "the variable '' is not set"),
        ("~nobody-of-that-name/x", "there is no user 'nobody-of-that-name'"),
    ],
)
def test_what_stands_for_nothing_is_named(written, named):
    with pytest.raises(InputError, match=named):
        expanded(written)
