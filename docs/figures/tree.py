"""Writes the tree of the package into ARCHITECTURE.md: a line for every module, its docstring's first sentence.

    python docs/figures/tree.py            # exit code 1 and the difference where the page is out of date
    python docs/figures/tree.py --write    # writes the page

Rooms stand in the order of the layers in pyproject.toml, the highest first.
"""

import argparse
import ast
import difflib
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "cagsr"
PAGE = ROOT / "ARCHITECTURE.md"
COLUMN = 31  # where what a module is begins


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    write = parser.parse_args().write
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if write:
        PAGE.write_text(new, encoding="utf-8")
    elif new != old:
        sys.stdout.writelines(
            difflib.unified_diff(old.splitlines(True), new.splitlines(True), "page", "code")
        )
        sys.exit(1)


def filled(page: str) -> str:
    """The page with the tree of the code as it is now."""
    block = re.compile(r"(<!-- tree: .*? -->\n```text\n).*?(```\n)", re.DOTALL)
    page, count = block.subn(lambda found: found[1] + tree() + found[2], page)
    if count != 1:
        raise ValueError(f"{PAGE.name}: expected one block after '<!-- tree: ... -->', found {count}")
    return page


def tree(package: Path = PACKAGE) -> str:
    """One line a module; a room's own line has the first sentence of its ``__init__``."""
    lines = [f"src/{package.name}/"]
    for module in sorted(package.glob("*.py")):
        lines.append(_line(module, module.name, "  "))
    for room in sorted(filter(_is_room, package.iterdir()), key=_height):
        lines += _room(room, "  ")
    return "\n".join(lines) + "\n"


def _room(room: Path, indent: str) -> list[str]:
    lines = [_line(room / "__init__.py", f"{room.name}/", indent)]
    for module in sorted(room.glob("*.py")):
        if module.name != "__init__.py":
            lines.append(_line(module, module.name, indent + "  "))
    for inner in sorted(filter(_is_room, room.iterdir())):
        lines += _room(inner, indent + "  ")
    return lines


def _is_room(path: Path) -> bool:
    return (path / "__init__.py").exists()


def _line(module: Path, name: str, indent: str) -> str:
    return f"{indent + name:<{COLUMN - 1}} {first_sentence(module)}".rstrip()


def first_sentence(module: Path) -> str:
    """The first sentence of a module's docstring on one line, without its backticks; empty where there is none."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split()).replace("`", "")
    return re.split(r"(?<=[.?!]) (?=[A-Z])", paragraph)[0]


def _height(room: Path) -> int:
    return re.findall(r"\w+", " ".join(layers())).index(room.name)


def layers() -> list[str]:
    """The layers that imports go down, as pyproject.toml has them: the highest first, ``a | b`` side by side."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (down,) = [contract for contract in contracts if contract["type"] == "layers"]
    return [line.strip("()") for line in down["layers"]]


if __name__ == "__main__":
    main()
