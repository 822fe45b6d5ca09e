"""Runs a notebook's code cells from top to bottom in one namespace, as a kernel would; needs no Jupyter.

python tests/docs/run_notebook.py --write      # puts what the cells say into examples/notebook.ipynb
"""

import argparse
import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def read() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Fill in the outputs of all code cells; returns the namespace that they leave. A cell that raises, raises here."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            value = _value("".join(cell["source"]), namespace, f"cell {number}")
        cell["execution_count"], cell["outputs"] = number, []
        if said.getvalue():
            cell["outputs"] = [
                {"name": "stdout", "output_type": "stream", "text": said.getvalue().splitlines(True)}
            ]
        if value is not None:
            shown = {"text/plain": [type(value).__name__]}
            for kind, method in (("text/html", "_repr_html_"), ("image/svg+xml", "_repr_svg_")):
                if hasattr(value, method):
                    shown[kind] = getattr(value, method)().splitlines(True)
            cell["outputs"].append(
                {"data": shown, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
            )
    return namespace


def _value(source: str, namespace: dict[str, Any], name: str) -> Any:
    """The value of the cell's last line where that is an expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    notebook = read()
    run(notebook)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
