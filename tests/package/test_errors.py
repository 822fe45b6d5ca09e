"""Messages for users: what may be in them, what they suggest, and that each says where and how to mend."""

import ast
import re
from pathlib import Path

import pytest

import cagsr
from cagsr.errors import InputError, closest, near, printable

SOURCE = Path(cagsr.__file__).parent
REFUSALS = ("InputError", "UnsupportedModelError")

# How a message tells what to do: an order, or what was expected instead.
MEND = re.compile(
    r"\b(?:set|use|choose|name|give|remove|rename|lower|raise|load|install|save|add|pass|correct|start|write|train|check"
    r"|move|leave|wait|need|needs|must|expected|takes|only|resize|download|end in|of the form|unlike|did you mean)\b",
    re.IGNORECASE,
)
# Where a message is about: an argument of a Python function, a key, an option or a command.
PLACE = re.compile(
    r"^\w+: |\b[a-z_]+\.[a-z_\d]+\b|--[a-z]|\bcagsr [a-z]+|\bsalience \w+|\bsignal '"
    r"|\breward|\btokenizer's|\bEvidence\b"
)
# These quote what a library says of a file, or what another message says.
QUOTED = ("reason", "error", "report", "problem", "hint", "mend", "why", "what")
# What is missing is all that there is to say.
PLAIN = (
    "direct preference optimisation needs pairs, and there are none",
    "a reward model needs preference pairs, and there are none",
    "holds no run to resume",
)


def refusals() -> list[tuple[str, ast.Call]]:
    """Every refusal that the program makes with words of its own, and where it stands."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in REFUSALS:
                assert isinstance(node, ast.Call)
                found.append((f"{path.relative_to(SOURCE)}:{node.lineno}", node))
    return found


def parts(call: ast.Call) -> tuple[str, list[str]]:
    """The literal words of a message, and the expressions put between them."""
    inside = [node for argument in call.args for node in ast.walk(argument)]
    words = [node.value for node in inside if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    holes = [ast.unparse(node.value) for node in inside if isinstance(node, ast.FormattedValue)]
    return " ".join(words), holes


def says_all(call: ast.Call) -> str:
    """What a refusal does not say; empty where it says enough, or is put together elsewhere."""
    words, holes = parts(call)
    if not call.args:
        return "says nothing"
    if (not words.strip() and not holes) or any(plain in words for plain in PLAIN):
        return ""
    if not holes and not PLACE.search(words):
        return "does not say where"
    quoted = any(hole.startswith(QUOTED) or "closest(" in hole or "MEND" in hole for hole in holes)
    return "" if quoted or MEND.search(words) else "does not say how to mend it"


def test_every_refusal_says_where_it_is_and_how_to_mend_it():
    assert len(refusals()) > 100
    wanting = [f"{place} {problem}" for place, call in refusals() if (problem := says_all(call))]
    assert wanting == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("InputError()", "says nothing"),
        ("InputError('too bad; use another one')", "does not say where"),
        ("InputError(f'{path} is bad')", "does not say how to mend it"),
        ("InputError('data.source is bad')", "does not say how to mend it"),
        ("InputError(f'{path} is bad; remove it')", ""),
    ],
)
def test_a_refusal_that_says_too_little_is_found(code, problem):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert says_all(call) == problem


def test_a_message_never_commands_the_terminal():
    assert str(InputError("a\x1b[2Jb\u202ec\ud800\nd\té🎈")) == r"a\x1b[2Jb\u202ec\ud800" + "\n" + r"d\té🎈"
    assert printable("") == ""


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("learing_rate", "learning_rate"),
        ("LearningRate", "learning_rate"),
        ("learning-rate", "learning_rate"),
        ("warmup", "warmup_steps"),
        ("stpes", "steps"),
        ("kl", "kl"),
        ("lk", "kl"),
        ("wd", None),
        ("", None),
        ("zzzz", None),
    ],
)
def test_the_choice_that_was_meant(word, meant):
    assert near(word, ["learning_rate", "steps", "warmup_steps", "kl"]) == meant


def test_the_choices_are_named_where_none_is_near():
    assert closest("zzzz", ["b", "a"]) == "; choose from a, b"
    assert closest("aa", ["b", "a"]) == "; did you mean 'a'?"
    assert near("abcd", ["abce"], least=1) is None


def test_no_message_installs_a_package_that_no_index_has():
    """``cagsr`` is installed from a clone or a wheel: an index does not know it, nor its extras."""
    found = [path for path in SOURCE.rglob("*") if path.suffix in (".py", ".j2", ".js", ".yaml")]
    assert len(found) > 100
    assert [
        str(path) for path in found if re.search(r"cagsr\[|pip install ['\"]?cagsr\b", path.read_text())
    ] == []
