"""Configs that went wrong: a sound one, broken in one to four places as text, as bytes, or by overrides."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml

from cagsr.config import reference
from odd_values import CHARACTERS, PLAUSIBLE, YAML_VALUES, odd_text

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIMAL = "data:\n  task: slots\n"


# Keys whose value is looked into, not only typed: names that lead somewhere, paths, terms, patterns.
PATHS = (
    "c.yaml",
    "c.yaml/x",
    "/dev/null",
    "/proc/x",
    "x" * 300,
    "no/where.yaml",
    "none.jsonl",
    "none.csv.gz",
    "a/../b",
)
CODE = (
    ".a.b",
    "..",
    "a..b",
    "os.path",
    "json.dumps",
    "os.nothing",
    "nosuch.f",
    "slotz",
    "oracle",
    "e2e",
    "this is.x",
)
LOOKED_INTO: Mapping[str, tuple[str, ...]] = {
    "data.checker": CODE,
    "compare.conventional_reward": CODE,
    "data.source": PATHS,
    "run.directory": PATHS,
    "reward.preset": (*PATHS, "paper", "oracle", "robst", "length", "c.yml"),
    "reward.terms": (
        *(f"[{{signal: '{name}'}}]" for name in CODE),
        *(
            "[{signal: length, standardise: batch}]",
            "[{signal: covrage}]",
            "[{signal: focus, options: {directon: x}}]",
        ),
        *(
            "[{signal: repetition, options: {n: many}}]",
            "[{signal: repetition, options: {n: 0}}]",
            "[]",
            "[{}]",
        ),
        *(
            "[{signal: knockout, options: {weights: [no]}}]",
            "[{signal: reward_model}]",
            "[{signal: length, weight: 1e999}]",
        ),
        *(
            "[{signal: json.dumps, options: {indent: 3, cls: [1]}}]",
            "[{signal: builtins.print}]",
            "[{signal: builtins.int}]",
        ),
    ),
    "reward.salience": (
        *(
            "{kind: column}",
            "{kind: span}",
            "{kind: span, start: a, pattern: b}",
            "{kind: span, pattern: '['}",
        ),
        *(
            "{kind: span, pattern: 'x{9999999999}'}",
            "{kind: span, pattern: '(?P<a>x)(?P=b)'}",
            "{kind: idf, power: -1}",
        ),
        *("{kind: span, pattern: 'a{4,2}'}", "{kind: span, pattern: '(?z)'}", "{kind: idf, power: 1e308}"),
    ),
    "reward.layers": ("[]", "[-1]", "[0, 99999999999]", "first", "last"),
    "model.dtype": ("bfloat16", "float16", "fp32"),
    "model.lora": ("{r: 0}", "{r: 2}", "{target_modules: []}", "{target_modules: ['']}", "{alpha: 0.5}"),
    "metrics.judge": (
        "{model: m, endpoint: 'http://a:b@c/v1'}",
        "{model: m, endpoint: 'http://['}",
        "{model: m, endpoint: x}",
    ),
    "sft.scratch": ("{layers: 1, hidden: 10, heads: 3}", "{vocabulary: 3}", "{}"),
    "algorithm.name": ("ppo", "policy-gradient", "dpo", "GRPO"),
    "sampling.candidates": ("1", "2", "64", "65", "1000000001"),
    "train.prompts_per_step": ("1", "7", "0"),
    "train.evaluate_every": ("0", "5"),
    "compare.seeds": ("[]", "[0, 0]", "[-1]", "[4294967296]"),
    "run.trackers": ("[tensorbord]", "[wandb, wandb]"),
}


class Given(NamedTuple):
    """What a user gives: the bytes of a config file (None: no file) and overrides."""

    content: bytes | None
    overrides: list[str]


@cache
def sound() -> tuple[str, ...]:
    """Configs as they should be: the reference with a task, and the examples."""
    every_key = reference().replace("  task: null", "  task: slots")
    return (
        MINIMAL,
        every_key,
        *(path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.yaml"))),
    )


@cache
def keys() -> tuple[str, ...]:
    """Every dotted key of the reference."""
    return tuple(_dotted(yaml.safe_load(reference())))


@cache
def presets() -> tuple[dict[str, Any], ...]:
    return tuple(
        yaml.safe_load((resources.files("cagsr.rewards") / "presets.yaml").read_text("utf-8")).values()
    )


def _dotted(mapping: Mapping[str, Any], head: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        yield head + key
        if isinstance(value, dict):
            yield from _dotted(value, f"{head}{key}.")


def broken_config(random: Random) -> Given:
    """A config file, overrides, or both, of which something is wrong in most cases."""
    overrides = [_override(random) for _ in range(random.choice((0, 0, 1, 1, 1, 2, 3)))]
    if overrides and random.random() < 0.5:
        return Given(None, [*overrides, "data.task=slots"] if random.random() < 0.8 else overrides)
    lines = random.choice(sound()).split("\n")
    for _ in range(random.choice((0, 1, 1, 2, 4)) if overrides else random.choice((1, 1, 1, 2, 4))):
        random.choice(LINE_MUTATIONS)(lines, random)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    if random.random() < 0.15:
        content = random.choice(BYTE_MUTATIONS)(content, random)
    return Given(content, overrides)


def broken_preset(random: Random) -> bytes:
    """A file of reward terms in which something is wrong in most cases."""
    lines = yaml.safe_dump(random.choice(presets()), sort_keys=False).split("\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(LINE_MUTATIONS)(lines, random)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return content if random.random() < 0.85 else random.choice(BYTE_MUTATIONS)(content, random)


def _override(random: Random) -> str:
    if random.random() < 0.4:
        key = random.choice(tuple(LOOKED_INTO))
        return f"{key}={random.choice(LOOKED_INTO[key])}"
    key = random.choice(keys())
    if random.random() < 0.2:
        key = misspelt(key, random)
    if random.random() < 0.1:
        return random.choice((key, f"={key}", f"{key}..x=1", f".{key}=1", odd_text(random), f"{key}=\n="))
    return f"{key}={random.choice(random.choice((YAML_VALUES, PLAUSIBLE)))}"


def misspelt(word: str, random: Random) -> str:
    place = random.randrange(len(word))
    odd = random.choice(CHARACTERS)
    return word[:place] + random.choice(("", odd, word[place].upper(), word[place] * 2)) + word[place + 1 :]


# Lines ------------------------------------------------------------------------------------------------------------


def _place(lines: list[str], random: Random) -> int:
    """A line with a key, where there is one."""
    with_key = [
        number for number, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")
    ]
    return random.choice(with_key or range(len(lines)))


def _value(lines: list[str], random: Random) -> None:
    place = _place(lines, random)
    lines[place] = lines[place].partition(":")[0] + ": " + random.choice(YAML_VALUES)


def _plausible(lines: list[str], random: Random) -> None:
    place = _place(lines, random)
    lines[place] = lines[place].partition(":")[0] + ": " + random.choice(PLAUSIBLE)


def _key(lines: list[str], random: Random) -> None:
    place = _place(lines, random)
    key, colon, value = lines[place].partition(":")
    body = key.lstrip() or "x"
    lines[place] = key[: len(key) - len(key.lstrip())] + misspelt(body, random) + colon + value


def _indent(lines: list[str], random: Random) -> None:
    place = _place(lines, random)
    lines[place] = random.choice((" ", "   ", "\t", " \t", "\u00a0")) + random.choice(
        (lines[place], lines[place].lstrip())
    )


def _dedent(lines: list[str], random: Random) -> None:
    place = _place(lines, random)
    lines[place] = lines[place].lstrip()


def _again(lines: list[str], random: Random) -> None:
    lines.insert(random.randrange(len(lines) + 1), lines[_place(lines, random)])


def _gone(lines: list[str], random: Random) -> None:
    del lines[_place(lines, random)]
    lines[:] = lines or [""]


def _moved(lines: list[str], random: Random) -> None:
    line = lines.pop(_place(lines, random))
    lines.insert(random.randrange(len(lines) + 1), line)


def _cut(lines: list[str], random: Random) -> None:
    lines[random.randrange(len(lines)) :] = [lines[-1][: random.randrange(9)]]


def _strange_line(lines: list[str], random: Random) -> None:
    head = random.choice(("", "  ", "train:", "- ", "---\n", "...\n", "%YAML 9.9\n", "? ", "x: "))
    lines.insert(random.randrange(len(lines) + 1), head + random.choice((*YAML_VALUES, odd_text(random))))


def _character(lines: list[str], random: Random) -> None:
    place = _place(lines, random)
    column = random.randrange(len(lines[place]) + 1)
    lines[place] = (
        lines[place][:column] + random.choice([*CHARACTERS, *"{}[]:,&*#|>'\"%@`"]) + lines[place][column:]
    )


def _nested(lines: list[str], random: Random) -> None:
    depth = random.choice((5, 31, 32, 33, 200, 5000))
    shape = random.choice(("{a: ", "[", "- ", "? "))
    lines.append(random.choice(("x: ", "train: ", "")) + shape * depth)


def _nothing(lines: list[str], random: Random) -> None:
    lines[:] = [random.choice(("", "#", "---", "null", "{}", "[]", "text", "3", "...", "--- \n--- \n", "\t"))]


LINE_MUTATIONS: tuple[Callable[[list[str], Random], None], ...] = (
    *(_plausible,) * 8,
    *(_value,) * 4,
    *(_key,) * 4,
    *(_indent, _dedent, _again, _gone, _moved, _cut, _strange_line, _character, _nested, _nothing),
)

# Bytes ------------------------------------------------------------------------------------------------------------


def _flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content or b"x")
    for _ in range(random.randint(1, 5)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


BYTE_MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flipped,
    lambda content, random: random.randbytes(random.randrange(300)),
    lambda content, random: b"\xef\xbb\xbf" + content,
    lambda content, random: content.replace(b"\n", random.choice((b"\r\n", b"\r", b"\x00\n", b"\xc2\x85"))),
    lambda content, random: _text(content).encode(random.choice(("utf-16", "utf-32", "utf-16-be"))),
    lambda content, random: _text(content).encode("latin-1", "replace").replace(b":", b"\xe9:", 1),
    lambda content, random: content[: random.randrange(len(content) + 1)],
    lambda content, random: content * random.randint(2, 30),
)
