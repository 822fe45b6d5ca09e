"""Where the user's cache lies."""

from pathlib import Path

import pytest

from cagsr.io.user_cache import user_cache


@pytest.mark.parametrize("given", ["", "cache", "./cache", "~/cache"])
def test_a_cache_home_that_is_not_absolute_counts_as_none(given, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert user_cache("heads") == tmp_path / ".cache/cagsr/heads"


def test_an_absolute_one_is_taken(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache("heads") == Path("/somewhere/cagsr/heads")
