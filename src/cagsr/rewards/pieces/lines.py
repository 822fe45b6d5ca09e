"""Pieces of one line: quotations, fields with their values, parts between bars, sentences, clauses, enumerations."""

from collections.abc import Iterator, Sequence

import regex as re

from cagsr.rewards.pieces.spans import BULLET, FIELD, NUMBER_COMMA, SENTENCE, WORD, Span, divided, trimmed

__all__ = ["RULE", "of_line"]

MEMBER_WORDS = 5
"""Most words of a member of an enumeration but its first, before which the sentence begins."""
SENTENCE_WORDS = 7
"""Words from which on what stands behind a label is divided as a sentence is, and no longer a field's value."""

RULE = re.compile(r"[\s|:=*_+-]*")
QUOTATION = re.compile(r"(?:\"[^\"\n]+\"|“[^”\n]+”|„[^“”\n]+[“”]|«[^»\n]+»|「[^」\n]+」)")


# Between two fields on one line: ";" anywhere, a comma or a bracket's end where another field begins.
BETWEEN_FIELDS = re.compile(
    r"(?<!\s)\s*[;；]\s*|(?<!\s)\s*[,，]\s*(?=[\w /-]{1,30}\s*[\[(:：=]\s*\S)|(?<=[\])])\s*,?\s*(?=[\w([])"
)
BRACKETED = re.compile(r"[\w /-]{1,30}[\[(][^\[\]()]+[\])]|\([^()]+\)")
# Of several separators in one sentence the first of these divides it; what others divide stays together.
BARS = (
    re.compile(r"(?<!\s)\s+(?:&&|##|\|\|)\s+"),
    re.compile(r"(?<!\s)\s+[|/•·]\s+|(?<!\s)\s*>>\s*|(?<!\s)\s+--+\s+|\.{3,}\s*(?=[^\W_A-Z])|,,+\s*"),
)
# A clause begins after a semicolon or a dash, or where a word joins one: after a comma, or by itself.
AFTER_COMMA = """
and but or so because while which who where although though unless otherwise then for as not no nobody without in on at
by until with has have is are was were they it we he she I its his their avoid put use end finish mention
und aber oder weil obwohl dass sonst ohne per et mais ou bien je sans y pero sin con en
"""
UNAIDED = "but because while although unless aber weil mais pero porque aunque"
VERB = """
is are was were has have had do don't did can could will would should must may says need offer mention tell keep write
make add use give
"""
CLAUSE = re.compile(
    r"(?<!\s)\s*[;；]\s*|(?<!\s)\s+[–—-]\s+|，"
    rf"|,\s+(?=(?:{'|'.join(AFTER_COMMA.split())})\s)"
    rf"|(?<!\s)\s+(?=(?:{'|'.join(UNAIDED.split())})\s)"
    r"|(?<!\s)\s+(?=in (?:at least|at most|exactly|fewer|under|about|no more|\d+ to)\s)"
    r"|(?<!\s)\s+(?=(?:et (?:il|elle|je|nous)|y no|and (?:it|they|he|she|we|I|you|not|end|be))\s)"
    r"|(?<!\s)\s+(?=and\s+\w+(?:s|ed)?\s+(?:a|an|the|to|less|more|by|two|three|\d+)\s)|(?<!\s)\s+(?=and\s+\w+s\s+\w+ly\b)"
    rf"|(?<!\s)\s+(?=and\s+(?:\w+\s+){{0,5}}?(?:{'|'.join(VERB.split())})\b)"
)
AFTER_COLON = re.compile(rf"{CLAUSE.pattern}|(?<=\w):\s+(?=\w)")
NEGATIONS = (
    r"no not never none without avoid except exclud\w* omit skip don['’]?t kein\w* nicht ohne sans pas sin"
)
TURNS = re.compile(rf"\b(?:{'|'.join(NEGATIONS.split())})\b", re.IGNORECASE)
MEMBER = re.compile(
    r"(?<!\s)\s*[,、،]\s*(?:(?:and|or|und|oder|et|ou|sowie)\s+)?|(?<!\s)\s+(?:and|or|und|oder|et|ou)\s+|(?<!\s)\s*&\s*|和"
)


def of_line(text: str, start: int, stop: int, followed: bool) -> Iterator[Span]:
    """Pieces of one line: of a quotation, fields with values, parts between bars, or sentences."""
    if RULE.fullmatch(text, start, stop):
        return
    bullet = BULLET.match(text, start, stop)
    # What the data set's own words have left in front of it is no part of a line.
    start = bullet.end() if bullet else stop - len(text[start:stop].lstrip(" \t.,;:!?…。"))
    if followed and _is_heading(text, start, stop):
        return
    position = start
    for quotation in QUOTATION.finditer(text, start, stop):
        introduced = text[: quotation.start()].rstrip().endswith((":", "："))
        if len(WORD.findall(quotation[0])) > (4 if introduced else 7):
            yield from _sentence_by_sentence(text, position, quotation.start(), bullet is not None)
            yield from _sentence_by_sentence(text, quotation.start() + 1, quotation.end() - 1, False)
            position = quotation.end()
    yield from _sentence_by_sentence(text, position, stop, bullet is not None)


def _is_heading(text: str, start: int, stop: int) -> bool:
    """Whether a line only names what follows: a few words and a colon, none of which turns what follows round."""
    few = len(WORD.findall(text, start, stop)) <= 3
    ends = text[start:stop].rstrip("* ").endswith((":", "："))
    return few and ends and not TURNS.search(text, start, stop)


def _sentence_by_sentence(text: str, start: int, stop: int, is_item: bool) -> Iterator[Span]:
    sentences = list(divided(text, start, stop, SENTENCE))
    for first, last in sentences:
        bars = next((bars for bar in BARS if len(bars := list(divided(text, first, last, bar))) > 2), None)
        fields = list(divided(text, first, last, BETWEEN_FIELDS))
        field = FIELD.match(text, first, last)
        members = [] if field else _members(text, first, last)
        if bars:
            yield from (trimmed(text, *bar) for bar in bars)
        elif len(fields) > 1 and _are_fields(text, fields):
            yield from (trimmed(text, *each) for each in fields)
        elif is_item and len(sentences) == 1:
            yield trimmed(text, first, last)
        elif field and len(WORD.findall(text, field.end(), last)) < SENTENCE_WORDS:
            yield from _enumerated(text, first, field.end(), last)
        elif members and len(WORD.findall(text, *members[0])) == 1:
            yield from (trimmed(text, *member) for member in members)
        else:
            for clause in divided(text, first, last, CLAUSE if field else AFTER_COLON):
                yield from _enumerated(text, clause[0], clause[0], clause[1])


def _are_fields(text: str, parts: Sequence[Span]) -> bool:
    named = [bool(FIELD.match(text, *part) or BRACKETED.match(text, *part)) for part in parts]
    return sum(named) >= 2 or (";" in text[parts[0][0] : parts[-1][1]] and len(parts) > 2)


def _enumerated(text: str, start: int, value: int, stop: int) -> Iterator[Span]:
    """The members of an enumeration of three or more that begins at ``value``, the first with what stands before it."""
    members = _members(text, value, stop)
    if not members:
        yield trimmed(text, start, stop)
        return
    yield trimmed(text, start, members[0][1])
    yield from (trimmed(text, *member) for member in members[1:])


def _members(text: str, start: int, stop: int) -> list[Span]:
    """The members of an enumeration: three or more with a comma between two, and short but for the first; or none."""
    members = list(divided(text, start, stop, MEMBER))
    short = all(len(WORD.findall(text, *member)) <= MEMBER_WORDS for member in members[1:])
    commas = len(re.findall("[,、،]", text[start:stop])) - len(NUMBER_COMMA.findall(text[start:stop]))
    return members if len(members) >= 3 and short and commas else []
