"""For mkdocstrings: what stands in columns in a docstring is kept as it is, where Markdown would make prose of it."""

import re

from griffe import Extension, Object

COLUMNS = re.compile(r"\S {2,}\S")


class Aligned(Extension):
    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = aligned(obj.docstring.value)


def aligned(text: str) -> str:
    """Every paragraph that has columns as a block of its own."""
    return "\n\n".join(
        f"```text\n{paragraph}\n```" if COLUMNS.search(paragraph) and "```" not in paragraph else paragraph
        for paragraph in text.split("\n\n")
    )
