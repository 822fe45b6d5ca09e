"""What people and programs put where something else belongs: texts, and values as YAML writes them."""

from random import Random

CHARACTERS = (
    *("\x00", "\x07", "\x08", "\x1b", "\x7f", "\x85", "\xa0", "\xad", "\u0301", "\u200b", "\u200d", "\u2028"),
    *(
        "\u2029",
        "\u202e",
        "\u2066",
        "\ufeff",
        "\uffff",
        "\ud800",
        "\udc80",
        "\U000e0041",
        "\U0010ffff",
        "\t",
        "\n",
    ),
    *("\r", "😀", "👩\u200d👩\u200d👧", "é", "ß", "İ", "ﷺ", "שלום", "नमस्ते", "ﬁ", "１"),
)

TEXTS = (
    "",
    " ",
    "\n\t",
    "null",
    "None",
    "nan",
    "true",
    "-1",
    "1e999",
    "city lyon",
    "name : The Vaults ; type : pub",
    "שלום \u202eabc",
    "🎈 party 👩‍👩‍👧",
    "a\x00b",
    "\ud83d",
    "\udc80tail",
    "e\u0301 \ufb01",
    "</s>",
    "<pad></s><unk>",
    "{{ cycler }} {% raw %}",
    "\x1b[2J\x1b]0;x\x07",
    "line\rline\x85line\u2028line",
    '"quoted", and, "more',
    "../../x",
    "\ufeffbom",
    "x" * 3000,
    "word " * 400,
    "@ @ ! ?",
)

YAML_VALUES = (
    *("", "~", "null", "true", "no", "on", "-1", "0", "1", "2", "1.0", "1.5", "1e-400", "1e999", "-0.0"),
    *(".nan", ".inf", "-.inf", "0x10", "0o7", "1_000", "12:30", "2026-01-01", "9" * 15, "9" * 30, "9" * 5000),
    *("''", "text", "a b", "'text", '"text', '"\\0"', '"\\ud800"', '"\\Uffffffff"', '"\\xZZ"', "a: b: c"),
    *("[]", "[1, 2]", "[0, 0]", "[null]", "[[[]]]", "[" * 100, "{}", "{a: b}", "{a: 1, a: 2}", "{? [x] : y}"),
    *(
        "*x",
        "&x 1",
        "!!python/name:os.system",
        "!!binary aGk=",
        "!x y",
        "<<: {a: 1}",
        "|",
        ">-",
        "%",
        "@",
        "`",
    ),
    *("- 1", "? x", "#", "=", "x" * 5000, "\u202eabc", "é🎈", "\x85", "a\u2028b", "\x07", "\ufeff"),
    *("{signal: coverage}", "[{signal: covrage}]", "[{signal: length, weight: .inf}]", "[{signal: .x.y}]"),
    *(
        "[{signal: length, options: {n: 1}}]",
        "[{signal: reward_model}]",
        "[{weight: 1}]",
        "[{signal: a.b.c}]",
    ),
    *("nosuch.module", ".relative.name", "..", "a..b", "grpo", "ppo", "uniform", "span", "column", "idf"),
    *("robust", "oracle", "none.yaml", "none.jsonl", "none.csv.gz", "/", "/dev/null", "/proc/x", "text/"),
)

# Right for some key, and wrong beside others.
PLAUSIBLE = (
    *(
        "null",
        "0",
        "1",
        "2",
        "3",
        "7",
        "64",
        "1000000000",
        "0.5",
        "1.0",
        "1e-5",
        "3.0",
        "true",
        "false",
        "a",
        "(",
    ),
    *(
        "grpo",
        "ppo",
        "policy-gradient",
        "bfloat16",
        "slots",
        "qa",
        "x.csv",
        "no/where",
        "idf",
        "span",
        "column",
    ),
    *(
        "length",
        "coverage",
        "paper",
        "oracle",
        "self-certainty",
        "batch",
        "group",
        "none",
        "[0, 1]",
        "last",
        "c.yaml",
    ),
    *("{r: 2}", "[{signal: length, standardise: batch}]", "[{signal: oracle}]", "{kind: span, pattern: '['}"),
    *(
        "{kind: span, pattern: 'x{9999999999}'}",
        "{limit: 1, action: stop}",
        "[{signal: knockout, options: {weights: no}}]",
    ),
    *(
        "{layers: 1, hidden: 10, heads: 3}",
        "{model: m, endpoint: 'http://a:b@c/v1'}",
        "os.path",
        "json.dumps",
        ".a.b",
    ),
)


def odd_text(random: Random) -> str:
    """A text of the list, or a few odd characters among letters."""
    if random.random() < 0.6:
        return random.choice(TEXTS)
    return "".join(random.choices([*CHARACTERS, *"abc :;,\"'{}[]\\"], k=random.randint(1, 12)))
