import importlib
import pkgutil
import subprocess
import sys

import pytest

import cagsr


@pytest.mark.parametrize(
    "module",
    [
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
    ],
)
def test_what_answers_before_a_model_loads_imports_no_torch(module):
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'transformers', 'accelerate'}} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def modules():
    return [module.name for module in pkgutil.walk_packages(cagsr.__path__, "cagsr.")]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists_and_every_module_says_what_it_is(name):
    if name == "cagsr.attention.kernel":
        pytest.importorskip("triton", reason="Triton is made for Linux alone")
    module = importlib.import_module(name)
    assert [public for public in getattr(module, "__all__", []) if not hasattr(module, public)] == []
    assert module.__doc__ or hasattr(module, "__path__"), f"{name} has no docstring"
