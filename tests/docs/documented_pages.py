"""The pages a user reads, and what stands in their fenced blocks: commands, files, Python."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from cagsr.config.messages import section_of

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w.-]+\.(?:py|yaml))\b")
PROGRAMS = ("accelerate", "cagsr", "git", "kill", "make", "pip", "python", "torchrun")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``file`` is the name it is kept under, None for what is no file."""

    language: str
    file: str | None
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """The commands of a block of language ``sh``, without their comments."""
        if self.language != "sh":
            return []
        return list(filter(None, map(_uncommented, self.text.replace("\\\n", " ").splitlines())))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """All fenced blocks in their order. A title, or a first line ``# name.yaml``, makes a block a file."""
    text = text_of(page)
    for fence in FENCE.finditer(text):
        language, title, body = fence.groups()
        named = NAMED.match(body) if language in ("yaml", "python") else None
        line = text.count("\n", 0, fence.start()) + 1
        yield Block(language, title or (named[1] if named else None), body, line)


def config_keys(model: type[BaseModel], path: str = "") -> set[str]:
    """Every dotted key of a config, sections among them."""
    found = set()
    for name, field in model.model_fields.items():
        inner = section_of(field)
        found |= {path + name} | (config_keys(inner, f"{path}{name}.") if inner else set())
    return found


def _uncommented(line: str) -> str:
    """``cagsr train  # why`` without the comment, quotes kept as they are typed."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, "#"
    return " ".join(lexer)
