"""Spans of a text: lines, parts between separators, and what is left of a part without its punctuation."""

from collections.abc import Iterator

import regex as re

__all__ = [
    "BULLET",
    "FIELD",
    "SENTENCE",
    "WORD",
    "Span",
    "divided",
    "lines_of",
    "sentences_of",
    "stripped",
    "trimmed",
]

Span = tuple[int, int]

WORD = re.compile(r"[\w\p{M}]+(?:[.,'’-][\w\p{M}]+)*")
BULLET = re.compile(
    r"\s*(?:(?:[-*•‣◦▪·–—+>☐☑✓✔■●○►→]|#{1,6}|\[[ xX]?\]|\(?\d{1,3}[.)\]](?!\d)|\(?[a-zA-Z][.)]"
    r"|\d{1,2}(?:\.\d{1,2})+\.?(?=\s+\p{Lu}))\s+(?:\[[ xX]?\]\s*)?|\d{1,3}[、．]\s*)"
)
LABEL = r"[^\W_][\w\p{M}()/*.’' -]{0,39}?\s*(?:[:：]|\s=)(?!//)\s*"
FIELD = re.compile(rf"\s*{LABEL}(?=\S)")
SENTENCE = re.compile(
    r"(?<=[.!?…])[\"'”’)]*\s+(?=[\"'“‘(¿¡„«]?[^\W_a-z])|(?<=!)\s+(?=\w)|(?<=[。！？；])|(?<=।)\s*"
)
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|No|vs|approx|max|min|Nr|bzw|c|ca|\d{1,2}|(?:[a-zA-Z]\.)+[a-zA-Z])\.$"
)
LONGEST_ABBREVIATION = 40
# Behind "5." it is a sentence that begins ("3 out of 5. The area is ..."), and no date that goes on ("5. Oktober").
BEGINNING = re.compile(
    r"[\"'”’)]*\s+(?:The|An?|It|Its|He|She|We|They|You|I|There|This|That|These|Please|And|But|Also|Der|Die|Das|Es|Er|Sie|Wir"
    r"|Ich|Bitte|Le|La|Les|Il|Elle)\b"
)
DOTTED = re.compile(r"(?:^|\s)(?:[a-zA-Z]\.)+[a-zA-Z]$")
NUMBER_COMMA = re.compile(r"\d,\d{3}")
QUOTED = re.compile(r"\"[^\"\n]+\"|“[^”\n]+”|„[^“”\n]+[“”]|«[^»\n]+»|「[^」\n]+」|`[^`\n]+`|\([^()\n]+\)")
OUTSIDE = " \t\r\n.,;:!?…。，、；：！？।*_|\"“”„«»「」'‘’()[]{}<>-–—/\\`="
PAIRS = ("()", "[]", "{}", "“”", "„“", "«»", "「」", '""', "**")
JOINS = re.compile(
    r"(?:(?:and|or|but|then|please|und|oder|aber|bitte|et|mais|ou|y|pero)\s+|(?:dear|hi|hello|hey|liebe[rs]?|bonjour)\s+\w+,\s+)+",
    re.IGNORECASE,
)


def lines_of(text: str, start: int, stop: int) -> Iterator[Span]:
    for match in re.finditer(r"[^\n]+", text[start:stop]):
        if match[0].strip():
            yield start + match.start(), start + match.end()


def sentences_of(text: str, start: int, stop: int) -> Iterator[Span]:
    """Sentences of the lines, and the label of a line whose text is a sentence ("Question: Who ...?")."""
    for line in lines_of(text, start, stop):
        bullet = BULLET.match(text, *line)
        for first, last in divided(text, bullet.end() if bullet else line[0], line[1], SENTENCE):
            label = FIELD.match(text, first, last)
            if label and text[first:last].rstrip(' "”»').endswith((".", "!", "?", "。", "？")):
                yield label.span()
                first = label.end()
            yield first, last


def divided(text: str, start: int, stop: int, between: re.Pattern[str]) -> Iterator[Span]:
    """The parts of ``text[start:stop]`` that ``between`` divides, outside of quotes, numbers and abbreviations."""
    quoted = [match.span() for match in QUOTED.finditer(text, start, stop)]
    position = start
    for match in between.finditer(text, start, stop):
        at = match.start()
        if any(first < at < last for first, last in quoted):
            continue
        short = ABBREVIATION.search(text[max(position, at - LONGEST_ABBREVIATION) : at])
        if short and not (short[0][-2].isdigit() and BEGINNING.match(text, at)):
            continue
        if NUMBER_COMMA.fullmatch(text[max(at - 1, 0) : match.end() + 3]):
            continue
        if text[position:at].strip(OUTSIDE):
            yield position, at
            position = match.end()
    if text[position:stop].strip(OUTSIDE):
        yield position, stop


def trimmed(text: str, start: int, stop: int) -> Span:
    start, stop = stripped(text, start, stop, OUTSIDE)
    joins = JOINS.match(text, start, stop)
    start = joins.end() if joins else start
    # What was opened inside is closed inside: "rating (3 out of 5)"; and an abbreviation keeps its last dot.
    for opening, closing in PAIRS:
        inside, after = text[start:stop], text[stop : stop + 1]
        is_open = (
            inside.count(opening) % 2 if opening == closing else inside.count(opening) > inside.count(closing)
        )
        if is_open and after == closing:
            stop += 1
    return start, stop + bool(text[stop : stop + 1] == "." and DOTTED.search(text[start:stop]))


def stripped(text: str, start: int, stop: int, outside: str) -> Span:
    inside = text[start:stop]
    return start + len(inside) - len(inside.lstrip(outside)), start + len(inside.rstrip(outside))
