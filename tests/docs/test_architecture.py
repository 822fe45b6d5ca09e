"""ARCHITECTURE.md: its tree, its layers and its paths are those of the package."""

import re
import subprocess
import sys

import pytest
from documented_pages import PAGES, ROOT

SCRIPT = ROOT / "docs/figures/tree.py"
PACKAGE = ROOT / "src/cagsr"
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.fixture
def tree(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import tree

    return tree


def test_the_tree_is_what_the_docstrings_say():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, f"run python docs/figures/tree.py --write\n{done.stdout}{done.stderr}"


def test_the_tree_names_every_module_and_no_other(tree):
    named, open_rooms = set(), {}
    for line in tree.tree().splitlines()[1:]:
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        path = open_rooms.get(depth - 2, "") + name
        if name.endswith("/"):
            open_rooms[depth] = path
        elif name != "__init__.py":
            named.add(path)
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert named == {module for module in modules if not module.endswith("__init__.py")}


def test_a_line_is_the_first_sentence_of_a_docstring_over_as_many_lines_as_it_has(tree, tmp_path):
    package = tmp_path / "cagsr"
    (package / "training").mkdir(parents=True)
    (package / "training/__init__.py").write_text("")
    (package / "training/step.py").write_text(
        '"""One ``step``, 0.5 of a\nrollout. More of it.\n\nAnd more."""\n'
    )
    (package / "types.py").write_text("")
    (package / "errors.py").write_text('"""Every error."""\n')
    assert tree.tree(package) == (
        "src/cagsr/\n"
        "  errors.py                    Every error.\n"
        "  types.py\n"
        "  training/\n"
        "    step.py                    One step, 0.5 of a rollout.\n"
    )


def test_the_layers_are_those_of_the_contract_in_their_order(tree):
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    assert [set(re.findall(r"\w+", row)) for row in table] == [
        set(re.findall(r"\w+", line)) for line in tree.layers()
    ]


def test_every_path_that_the_page_names_exists():
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    named = set(re.findall(r"`([a-z_]+/[\w/]*(?:\.py|\.yaml)?)`", prose))
    assert len(named) > 20
    assert [
        path for path in sorted(named) if not (PACKAGE / path).exists() and not (ROOT / path).exists()
    ] == []


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_path_of_the_repository_that_a_page_names_or_links_to_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]*[\w/])`", prose)
    assert [path for path in named if not (ROOT / path).exists()] == []
    if "/" not in page:  # links of the pages below docs/ are checked when the site is built
        links = re.findall(r"\]\((?!https?://)([^)#]+)", prose)
        assert [link for link in links if not (ROOT / link).exists()] == []
