"""Names and numbers of a response that its prompt lacks: inventions, counted without a checker and without a model."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import regex as re

__all__ = ["foreign_names"]

# Marks of a numbered list are layout, and what stands in brackets alone ("[Your Name]") is left open, not invented.
LAYOUT = re.compile(r"^[ \t]*(?:\d+[.)]|[-*•])[ \t]+|(?<!\w)\[[^\]\n]*\]", re.MULTILINE)
ABBREVIATED = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St)\.")
DASHES = str.maketrans("‐‑‒–—’‘", "-----''")

WORD = re.compile(r"[\p{L}\p{M}\p{N}]+(?:'\p{L}+)*")
CAPITALISED = r"\p{Lu}[\p{L}\p{M}\p{N}]*(?:'\p{L}+)*'?"
NAME = re.compile(
    rf"(?<![\p{{L}}\p{{M}}\p{{N}}'])({CAPITALISED})(?:(?:[ -]| & | of (?:the )?| de (?:la )?){CAPITALISED})*"
)
# What a sentence, a line or something quoted begins behind: the first word there is written so in any case.
BEGINNING = re.compile(r"(?:^|[.!?…:;\n][\s\W]*|[\"“«'(])$")
CAMEL = re.compile(r"(?<=\p{Ll})(?=\p{Lu})")
# Capitals that name nobody: what titles and letters are made of, and abbreviations that everybody uses.
_NO_NAMES = """
a an the this that these those and or but nor so yet if as at by for from in into of off on onto over to up with
i you he she it we they me him her us them my your his its our their is are was were be been am do does did have
has had will would can could may might must shall should not no yes all any each every some here there what when
where which who whom why how please dear hi hello hey thanks thank regards wishes sincerely cheers subject best
kind kindest warm warmest yours truly faithfully mr mrs ms dr prof st ok pm am ps asap rsvp tv
"""
NO_NAMES = frozenset(_NO_NAMES.split())

NUMBER = re.compile(r"(?<![\p{L}\p{M}\p{N}.,])\d+(?:[.,:/-]\d+)*")
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_BELOW_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
BELOW_TWENTY = _BELOW_TWENTY.split()
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = {"thousand": 1000, "million": 1_000_000}
VALUES = {word: value for value, word in enumerate(BELOW_TWENTY)}
VALUES |= {word: 10 * value for value, word in enumerate(TENS, start=2)}
_SMALL = rf"(?:(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(BELOW_TWENTY[1:10])}))?|{'|'.join(BELOW_TWENTY)})"
_BELOW_THOUSAND = rf"(?:(?:{_SMALL}[ -])?hundred(?:[ -](?:and[ -])?{_SMALL})?|{_SMALL})"
_SCALE = rf"(?:{'|'.join(SCALES)})"
_SCALED = rf"(?:{_BELOW_THOUSAND}[ -])?{_SCALE}(?:[ -](?:and[ -])?{_BELOW_THOUSAND}[ -]{_SCALE})*"
WRITTEN_OUT = re.compile(
    rf"\b(?:{_SCALED}(?:[ -](?:and[ -])?{_BELOW_THOUSAND})?|{_BELOW_THOUSAND})\b", re.IGNORECASE
)
ROUND = re.compile(
    rf"(?<![\w.,])(\d{{1,3}}(?:,\d{{3}})+|\d+(?:\.\d+)?)[ -](hundred|{_SCALE})\b", re.IGNORECASE
)


def foreign_names(prompt: str | Sequence[Mapping[str, Any]], response: str) -> int:
    """How many different names and numbers a response has that its prompt lacks. 0 or more, lower is better.

    A prompt is a text, or messages, of which every turn counts and the chat template's own words do not.

    A name is a run of capitalised words ("Gordon Ramsay", "Bank of England"); it is the prompt's where each of its
    words stands there, in whatever case, with or without accents, hyphens, a possessive or plural s, or inside a name
    like ``familyFriendly``. The first word of a sentence, a line or a quotation is not judged, the rest of its run is.
    A number is written in digits (thousands, decimals, ranges, times, ordinals; any currency or unit beside it) or in
    words, which are the same: "25", "twenty-five". One of several parts ("20-25", "7:30", "3/5") is the prompt's where
    they stand there in this order, with no other number between them. "one" in words is no number that a response could
    invent.

    Limits: a name of one word that begins a sentence is not seen, nor one in small letters. A heading in title case, or
    a word in capitals for emphasis, counts as a name where the prompt lacks the word; "Italy" is not "Italian", "21st"
    is not "twenty-first", 7.30 is not 7:30. What an instruction says ("in two sentences") is there to be said, too. A
    name of the prompt in another role, and a number beside another thing, are not seen. For languages that capitalise
    names alone: in German every noun that the prompt lacks would count, in scripts without capitals only numbers do.

    Source: the project's own count.
    """
    text = prompt if isinstance(prompt, str) else "\n".join(str(turn.get("content", "")) for turn in prompt)
    given, said = _plain(text), _plain(response)
    return len(_foreign_names(given, said)) + len(_foreign_numbers(given, said))


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(DASHES)
    return ABBREVIATED.sub(r"\1", LAYOUT.sub(lambda found: "\n" * found.group().count("\n"), text))


def _foreign_names(given: str, said: str) -> set[frozenset[str]]:
    """The words of each foreign name that the prompt lacks; a name said again, in whole or in part, is there once."""
    known = {key for text in (given, CAMEL.sub(" ", given)) for key in map(_key, WORD.findall(text))}
    found: set[frozenset[str]] = set()
    seen: set[str] = set()
    for name in NAME.finditer(said):
        words = WORD.findall(name.group())
        if BEGINNING.search(said, max(0, name.start() - 8), name.start()) or name.start() == 0:
            words = words[1:]
        keys = {_key(word) for word in words if word[0].isupper()}
        new = {key for key in keys if len(key) > 1 and key not in NO_NAMES} - known - seen
        if new:
            found.add(frozenset(new))
            seen |= new
    return found


def _key(word: str) -> str:
    """A word as names are compared: small letters without accents, contractions, possessive and plural s."""
    folded = unicodedata.normalize("NFKD", word.casefold().rstrip("'"))
    plain = "".join(letter for letter in folded if not unicodedata.combining(letter))
    stem, mark, ending = plain.rpartition("'")
    plain = stem if mark and ending in ("s", "m", "d", "t", "ll", "re", "ve") else plain
    return plain if plain in NO_NAMES else plain.removesuffix("s")


def _foreign_numbers(given: str, said: str) -> set[str]:
    known = [part for number in _numbers(_in_digits(given)) for part in _parts(number)]
    found = set(_numbers(_in_digits(said, but="one")))
    return {number for number in found if not _stands_in(_parts(number), known)}


def _stands_in(parts: list[str], known: list[str]) -> bool:
    """Whether the parts stand there one behind the other: 3/5 in "3 out of 5", and 30:7 not in 7:30."""
    return any(known[start : start + len(parts)] == parts for start in range(len(known)))


def _numbers(text: str) -> Iterator[str]:
    """Runs of digits and what joins them: "20-25", "7:30", "555-0142", "3.5"; 1,000 is 1000 and 20.00 is 20."""
    for match in NUMBER.finditer(text):
        run = match.group()
        if THOUSANDS.fullmatch(run):
            run = run.replace(",", "")
        if run.count(".") == 1 and run.replace(".", "").isdigit():
            run = run.rstrip("0").rstrip(".")
        yield run


def _parts(number: str) -> list[str]:
    return re.split(r"[,:/-]", number)


def _in_digits(text: str, but: str = "") -> str:
    """The text with its numbers in words, all ``but`` one, as digits; "20 thousand" is 20000."""

    def multiplied(found: re.Match[str]) -> str:
        digits, scale = found.groups()
        return f"{Decimal(digits.replace(',', '')) * _value(scale.casefold()):f}"

    def written(found: re.Match[str]) -> str:
        words = found.group().casefold()
        return found.group() if words == but else str(_value(words))

    return WRITTEN_OUT.sub(written, ROUND.sub(multiplied, text))


def _value(words: str) -> int:
    total = value = 0
    for word in re.split(r"[ -]", words):
        if word == "hundred":
            value = max(value, 1) * 100
        elif word in SCALES:
            total, value = total + max(value, 1) * SCALES[word], 0
        elif word != "and":
            value += VALUES[word]
    return total + value
