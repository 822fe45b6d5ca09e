"""The section on a real assistant is written from its record, and is not there without one."""

from benchmarks import pages
from benchmarks.table_real_page import every_task
from benchmarks.table_real_rows import COLUMNS, add

BLOCK = "<!-- table: real, every task -->\n\n<!-- end -->\n\nrest\n"


def row(system: str, asked: str, **cells: str) -> list[str]:
    given = {
        "system": system,
        "asked": asked,
        **{name.replace("_", " "): cell for name, cell in cells.items()},
    }
    return [given.get(name, "") for name in COLUMNS]


def test_without_a_record_there_is_no_section_and_nothing_to_mend():
    assert pages.fill(BLOCK, {"real": {}}, "page") == (BLOCK, [])


def test_a_task_has_its_tables_without_columns_that_nothing_was_measured_for():
    record = add(
        {},
        "e2e",
        [row("no-rl", "plain", slot_errors=".700", relevance=".5", minutes="", measured="2026-12-01")],
    )
    lines = every_task(record).splitlines()
    assert lines[0] == "## A real assistant"
    assert "### e2e: 1 rows" in lines
    assert "| system | seed | asked | slot errors |" in lines
    assert "| no-rl |  | plain | .700 |" in lines
    assert "| system | seed | asked | relevance | measured |" in lines
    assert not any("apart" in line for line in lines)


def test_layouts_are_told_apart_from_the_best_to_the_worst():
    cells = {"plain": ".380", "better": ".100", "bullets": ".346", "fields": ".504"}
    found = every_task(
        add({}, "e2e", [row("oracle", asked, slot_errors=cell) for asked, cell in cells.items()])
    )
    assert "| system | seed | one line | lines | bullets | prose | fields | apart |" in found
    assert "| oracle |  | .380 |  | .346 |  | .504 | .158 |" in found


def test_the_section_stands_in_the_results_and_is_stable():
    record = add({}, "requests", [row("no-rl", "plain", slot_errors=".700")])
    filled, problems = pages.fill(BLOCK, {"real": record}, "page")
    assert [problem.what for problem in problems] == ["not what real, every task is now"]
    assert pages.fill(filled, {"real": record}, "page") == (filled, [])
    assert filled.endswith("| no-rl |  | plain | .700 |\n\n<!-- end -->\n\nrest\n")
    assert "<!-- table: real, every task -->" in (pages.ROOT / "docs/results.md").read_text(encoding="utf-8")
