import importlib
import pkgutil
import subprocess
import sys

import pytest

import cagsr

LIGHT = (
    "cagsr",
    "cagsr.cli.main",
    "cagsr.config",
    "cagsr.runs.directory",
    "cagsr.report",
    "cagsr.data.readers",
    "cagsr.errors",
    "cagsr.tasks",
    "cagsr.rating.session",
    "cagsr.rating.server",
    "cagsr.rating.export",
)


def test_what_answers_before_a_model_loads_imports_no_torch():
    """One interpreter imports all, and says after which of them something heavy was there."""
    code = f"""
import importlib, sys
for name in {LIGHT}:
    importlib.import_module(name)
    found = sorted({{'torch', 'transformers', 'accelerate'}} & set(sys.modules))
    print(name, *found)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == [*LIGHT]


def modules():
    return [module.name for module in pkgutil.walk_packages(cagsr.__path__, "cagsr.")]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists_and_every_module_says_what_it_is(name):
    if name == "cagsr.attention.kernel":
        pytest.importorskip("triton", reason="Triton is made for Linux alone")
    module = importlib.import_module(name)
    assert [public for public in getattr(module, "__all__", []) if not hasattr(module, public)] == []
    assert module.__doc__ or hasattr(module, "__path__"), f"{name} has no docstring"
