"""What `import cagsr` offers: every public name, typed, at no cost until it is used."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from statistics import median

import pytest

import cagsr
import forked

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def in_a_fresh_interpreter(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_importing_it_takes_no_time_and_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import cagsr; taken = time.perf_counter() - start\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'matplotlib', 'trl'} & set(sys.modules)\n"
        "print(taken, *heavy)"
    )
    said = [in_a_fresh_interpreter(code).split() for _ in range(5)]
    assert [rest for _, *rest in said] == [[]] * 5
    assert median(float(taken) for taken, *_ in said) < 0.15  # 50 ms, on a machine that does other things too


@pytest.mark.parametrize("name", cagsr.__all__)
def test_every_public_name_is_there_and_listed(name):
    module = importlib.import_module(cagsr._MODULES[name])
    assert getattr(cagsr, name) is getattr(module, name)
    assert inspect.getdoc(getattr(cagsr, name))
    assert name in dir(cagsr)


def test_the_names_the_modules_and_the_types_are_the_same():
    assert cagsr.__all__ == sorted(cagsr._MODULES)
    tree = ast.parse(Path(cagsr.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == cagsr._MODULES
    assert Path(cagsr.__file__).with_name("py.typed").exists()


def test_no_public_name_is_hidden_by_a_package():
    packages = {module.name for module in pkgutil.iter_modules(cagsr.__path__)}
    assert packages & {*cagsr.__all__} == set()


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cagsr' has no attribute 'heatmaps'"):
        _ = cagsr.heatmaps  # type: ignore[attr-defined]


def test_star_imports_every_public_name_and_no_other(tmp_path):
    code = "import forked; forked.forget('cagsr'); from cagsr import *; print(sorted(dir()))"
    started = forked.start(partial(exec, code, {}), tmp_path)
    assert started.wait() == 0, started.err
    assert ast.literal_eval(started.out) == sorted([*cagsr.__all__, "__builtins__", "forked"])


def test_errors_and_config_need_no_torch():
    code = "import sys; from cagsr import Config, InputError, Term; print('torch' in sys.modules)"
    assert in_a_fresh_interpreter(code) == "False"


def test_the_version_is_that_of_the_wheel_which_says_that_it_is_typed():
    assert PROJECT["version"] == cagsr.__version__
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert PROJECT["authors"] == [{"name": "The cagsr authors"}]
    assert all((Path(__file__).parents[2] / file).exists() for file in PROJECT["license-files"])
