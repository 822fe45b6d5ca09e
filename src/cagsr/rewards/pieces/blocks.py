"""Pieces of a text by its blocks: JSON, code, tables, and lines that stand for themselves."""

from collections.abc import Iterator, Sequence

import regex as re

from cagsr.rewards.pieces.lines import RULE, of_line
from cagsr.rewards.pieces.spans import WORD, Span, divided, lines_of, stripped, trimmed

__all__ = ["of_text"]

FENCE = re.compile(r"\s*(?:```|~~~)")
CODE = re.compile(
    r"\s*(?:def|class|for|while|if|import|from|function|const|let|var|public|#include|SELECT)\b.*[:;{)]\s*$"
)
JSON_BEGINS = re.compile(r"[{\[]\s*[\"{\[]")
PARAGRAPH = re.compile(r"(?:[^\n]|\n(?!\n))+")
STRING = r'"(?:[^"\\\n]|\\.)*"'
MEMBER_OF_JSON = re.compile(rf'"[^"\n]+"\s*:\s*(?:{STRING}|\[(?:{STRING}|[^"\[\]{{}}])*\]|[^\s"\[\]{{}},]+)')
# A list of phrases, each of which is a piece; a list of words is one with its key.
PHRASES = re.compile(rf'"[^"\n]+"\s*:\s*\[\s*{STRING}(?:\s*,\s*{STRING})+\s*\]')
PHRASE = re.compile(r'"[^"\n]*\w\W+\w+\W+\w[^"\n]*"')
# A dialogue act: "inform(artist=Nina, venue=The Old Tannery)".
ACT = re.compile(r"\w*\((?:\s*[\w -]+=[^=,;()\n]+[,;]?)+\)")
MEMBER_OF_ACT = re.compile(r"[\w-]+(?: [\w-]+)*\s*=\s*[^=,;()\n]*[^\s=,;()]")
ROW = re.compile(
    r'(?:"[^"\n]*"|[^,;\t\n"]*)(?:([,;\t])(?:"[^"\n]*"|[^,;\t\s"][^,;\t\n"]*))(?:\1(?:"[^"\n]*"|[^,;\t\s"][^,;\t\n"]*))+'
)


def of_text(text: str, start: int, stop: int) -> Iterator[Span]:
    """Pieces of a stretch of text: those of JSON and dialogue acts in it, and those of its blocks of lines."""
    acts = [(match.span(), MEMBER_OF_ACT) for match in ACT.finditer(text, start, stop)]
    found = [
        (span, [part for each in member.finditer(text, *span) for part in _members(each)])
        for span, member in [*_json_of(text, start, stop), *acts]
    ]
    for (first, _), members in sorted(found):
        if members and first >= start:
            yield from _blocks(text, start, first)
            start = first
            for member in members:
                # Words between two members are prose between two structures, or members of another kind.
                if len(WORD.findall(text, start, member[0])) > 1:
                    yield from _blocks(text, start, member[0])
                yield member
                start = member[1]
    yield from _blocks(text, start, stop)


def _members(member: re.Match[str]) -> Iterator[Span]:
    """A member, or the phrases of the list that is its value."""
    phrases = [each.span() for each in re.finditer(STRING, member[0])][1:]
    if PHRASES.fullmatch(member[0]) and any(PHRASE.fullmatch(member[0], *span) for span in phrases):
        yield from ((member.start() + first, member.start() + last) for first, last in phrases)
    else:
        yield member.span()


def _json_of(text: str, start: int, stop: int) -> Iterator[tuple[Span, re.Pattern[str]]]:
    """From the first opening bracket of each paragraph to its last closing one."""
    for paragraph in PARAGRAPH.finditer(text, start, stop):
        begins = JSON_BEGINS.search(text, *paragraph.span())
        ends = max(text.rfind(bracket, *paragraph.span()) for bracket in "}]")
        if begins and begins.start() < ends:
            yield (begins.start(), ends + 1), MEMBER_OF_JSON


def _blocks(text: str, start: int, stop: int) -> Iterator[Span]:
    """Pieces of lines that go together (code, a table) and of single ones."""
    lines = list(lines_of(text, start, stop))
    while lines:
        kind = _kind(text, lines)
        if kind == "line":
            yield from of_line(text, *lines.pop(0), followed=bool(lines))
            continue
        block = []
        if kind == "fence":
            lines.pop(0)
        while lines and _continues(text, kind, block, lines):
            block.append(lines.pop(0))
        if kind == "fence":
            lines = lines[1:]
        yield from _rows(text, block) if kind == "table" else _code(text, block)


def _kind(text: str, lines: Sequence[Span]) -> str:
    line = text[slice(*lines[0])]
    if FENCE.match(line):
        return "fence"
    if CODE.match(line):
        return "code"
    return "table" if _is_row(line) and len(lines) > 1 and _is_row(text[slice(*lines[1])]) else "line"


def _is_row(line: str) -> bool:
    return line.count("|") >= 2 or bool(ROW.fullmatch(line.strip()))


def _continues(text: str, kind: str, block: Sequence[Span], lines: Sequence[Span]) -> bool:
    line = text[slice(*lines[0])]
    if kind == "fence":
        return not FENCE.match(line)
    if kind == "table":
        return _is_row(line)
    if not block:
        return True
    inside = text[block[0][0] : block[-1][1]]
    is_indented = line != line.lstrip()
    return inside.count('"""') % 2 == 1 or ("\n\n" not in text[block[-1][1] : lines[0][0]] and is_indented)


def _rows(text: str, rows: Sequence[Span]) -> Iterator[Span]:
    """The rows of a table without its header (above a rule); of a single row its cells."""
    rules = [place for place, row in enumerate(rows) if RULE.fullmatch(text, *row)]
    rows = rows[rules[0] + 1 :] if rules else rows
    if len(rows) > 1:
        yield from (stripped(text, *row, " \t|") for row in rows)
    for row in rows if len(rows) == 1 else ():
        yield from (trimmed(text, *cell) for cell in divided(text, *row, re.compile(r"\s*\|\s*")))


def _code(text: str, lines: Sequence[Span]) -> Iterator[Span]:
    """A block of up to four lines of code as a whole, a longer one line by line; an example with what it gives."""
    if 0 < len(lines) <= 4:
        yield stripped(text, lines[0][0], lines[-1][1], " \t\r")
        return
    pending: Span | None = None
    for start, stop in lines:
        line = text[start:stop].strip()
        if pending and not line.startswith((">>>", '"""')):
            yield pending[0], stripped(text, start, stop, " \t\r")[1]
            pending = None
        elif line.startswith(">>>"):
            pending = stripped(text, start, stop, " \t\r>")
        elif '"""' in line or not re.search(r"[=()\[\]{}:;]", line):
            yield trimmed(text, start, stop)
        else:
            yield stripped(text, start, stop, " \t\r")
