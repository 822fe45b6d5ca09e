"""Reports are inert: script payloads in every field of a run, a real browser, and canaries that a script would trip.

A payload calls ``canary(N)`` when it runs and asks for ``https://canary.invalid/N`` when it loads something. Each page
holds many of them, one a field, and is then used: every candidate, pair, filter and curve is looked at. A payload that
only the Content-Security-Policy stopped has become markup, and counts as one that ran.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from playwright.sync_api import Browser, Page

import made_runs
from browser import Watched, browser, watch
from cagsr.report import write_report

TITLE = "reports are inert"
PROMISE = 12
COUNT = 2000
A_PAGE = 50

VECTORS = (
    "<script>{run}</script>",
    "</script><script>{run}</script>",
    "<script src={load}></script>",
    "<script type=module>import '{load}'</script>",
    "<!--<script>{run}//--></script><script>{run}</script>",
    "--><script>{run}</script><!--",
    "]]><script>{run}</script>",
    '"}}]}}</script><script>{run}</script>',
    '\\"}}]</script><script>{run}</script>',
    "</title><script>{run}</script>",
    "</style><script>{run}</script>",
    "</textarea></pre></svg><script>{run}</script>",
    "</option></select><img src=x onerror={run}>",
    "</text></svg><img src=x onerror={run}>",
    "<img src=x onerror={run}>",
    "<img src=x onerror=&#99;&#97;&#110;&#97;&#114;&#121;({n})>",
    "<img/src/onerror={run}>",
    "<img src={load}>",
    "<img srcset='{load} 2x'>",
    "<svg onload={run}>",
    "<svg><script>{run}</script></svg>",
    "<svg><animate onbegin={run} attributeName=x dur=1s>",
    "<svg><use href='{load}#a'/></svg>",
    "<svg><image href='{load}'/></svg>",
    "<svg><foreignObject><iframe onload={run}></iframe></foreignObject></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror={run}></style>",
    "<noscript><p title='</noscript><img src=x onerror={run}>'>",
    "<iframe srcdoc='<script>parent.{run}</script>'></iframe>",
    "<iframe src='javascript:parent.{run}'></iframe>",
    "<iframe src='{load}'></iframe>",
    "<object data='{load}'></object>",
    "<embed src='{load}'>",
    "<a href='javascript:{run}' autofocus onfocus={run}>look</a>",
    "javascript:{run}",
    "<body onload={run}>",
    "<details open ontoggle={run}>",
    "<input autofocus onfocus={run}>",
    "<video><source onerror={run}></video>",
    "<video src='{load}' autoplay></video>",
    "<audio src='{load}' autoplay></audio>",
    "<marquee onstart={run}>",
    "<base href='https://canary.invalid/'>",
    "<link rel=stylesheet href='{load}'>",
    "<link rel=prefetch href='{load}'><link rel=preload as=image href='{load}'>",
    "<meta http-equiv=refresh content='0;url={load}'>",
    "<meta http-equiv=Content-Security-Policy content='script-src *'>",
    "<form action='{load}'><button autofocus onfocus=this.form.submit()>",
    "<style>@import '{load}';</style>",
    "<style>*{{background:url({load})}}</style>",
    "<p style='background:url({load})'>",
    "red;background:url({load})",
    "' style='background:url({load})' x='",
    '" onmouseover="{run}" onfocus="{run}" x="',
    "' onpointerenter='{run}' autofocus tabindex=0 x='",
    "` onmouseover=`{run}`",
    "x onmouseover={run} y",
    "{{{{ self.__init__.__globals__ }}}}<script>{run}</script>",
    "{{% raw %}}<script>{run}</script>",
    "${{{run}}}",
    "';{run};//",
    '";{run};//',
    "\\';{run};//",
    "*/{run}/*",
    "\u2028{run}\u2028",
    "</scr\x00ipt><scr\x00ipt>{run}</script>",
    "\ufeff<script>{run}</script>",
    "<\u202escript>{run}</\u202escript>",
    "\ud83c<script>{run}</script>\udfff",
    "＜script＞{run}＜/script＞",
    "+ADw-script+AD4-{run}+ADw-/script+AD4-",
    "&lt;script&gt;{run}&lt;/script&gt;",
    "&#60;img src=x onerror={run}&#62;",
    "%3Cscript%3E{run}%3C/script%3E",
    "\\u003cscript\\u003e{run}\\u003c/script\\u003e",
    "\\x3cimg src=x onerror={run}\\x3e",
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty<img src=x onerror={run}>",
)
_TAGS = """
html head meta link title style body a nav ul li main header p strong dl div dt dd details summary section h1 h2 h3
table caption thead tbody tr th td span svg g line circle rect polyline text figure figcaption form label select option
input ol button article footer script pre code noscript b del ins
"""
TAGS = _TAGS.split()
# Whatever is an element here was written by the page itself; everything else came out of a field.
STRANGE = """(tags) => [...document.querySelectorAll("*")].flatMap((one) => {
  const names = one.getAttributeNames().filter((name) => /^on|^style$|^src|^action$|^srcdoc$|^xlink/.test(name)
    && !(name === "style" && one.matches(".words span")));
  const link = one.getAttribute("href");
  if (link !== null && !link.startsWith("#") && link !== "data:,") names.push("href");
  return tags.includes(one.localName) && !names.length ? [] : [one.outerHTML.slice(0, 120)];
})"""


def payload(vector: str, number: int, random: Random) -> str:
    """One vector with its canaries, written in one of the ways that filters overlook."""
    written = vector.format(run=f"canary({number})", load=f"https://canary.invalid/{number}", n=number)
    ways: tuple[Callable[[str], str], ...] = (
        str,
        lambda text: text.replace("script", "ScRiPt").replace("img", "iMg"),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace(" ", "\n"),
        lambda text: f"a word {text} and more",
        lambda text: f"'\"`>{text}",
    )
    return random.choice(ways)(written)


# Fields: where the n-th payload of a page goes. A run is what `_empty` makes. --------------------------------------

Parts = dict[str, Any]
Field = Callable[[Parts, str], None]


def _row(file: str, key: str) -> Field:
    def put(parts: Parts, text: str) -> None:
        where = len(parts[file])
        made = {
            "candidates": lambda: made_runs.candidate("one two", 1.0, [{2: 0.5}, {4: 0.2}], step=where),
            "responses": lambda: {"system": "cagsr", "prompt": "p", "response": "r", "slot_error_rate": 0.1},
        }[file]()
        parts[file].append(made | {key: text})

    return put


def _response(parts: Parts, text: str, key: str) -> None:
    """A pair needs both systems to have answered the same prompt."""
    at = len(parts["responses"])
    for system in ("base", "cagsr"):
        row = {"system": system, "prompt": f"p{at}", "response": f"r{at} {system}", "slot_error_rate": 0.1}
        parts["responses"].append(row | {key: text})


def _both(key: str) -> Field:
    return lambda parts, text: _response(parts, text, key)


def _system(parts: Parts, text: str) -> None:
    parts["summary"]["systems"][text] = parts["summary"]["systems"]["base"]
    parts["summary"]["differences"][f"{text}-base"] = made_runs.SUMMARY["differences"]["cagsr-base"]


def _metric(parts: Parts, text: str) -> None:
    for metrics in parts["summary"]["systems"].values():
        metrics[text] = made_runs.interval(0.5)


def _response_system(parts: Parts, text: str) -> None:
    parts["more_systems"].append(text)


def _evaluated(key: str) -> Field:
    """Of the other run of the page, whose pairs are what it answered at its evaluations."""

    def put(parts: Parts, text: str) -> None:
        at = len(parts["evaluations"])
        for step in (0, 3):
            row = {"step": step, "prompt": f"p{at}", "response": f"r{at} {step}", "reward": 0.1}
            parts["evaluations"].append(row | {key: text})

    return put


def _evaluated_metric(parts: Parts, text: str) -> None:
    parts["evaluated_metrics"].append(text)


def _response_metric(parts: Parts, text: str) -> None:
    parts["more_metrics"].append(text)


def _keyed(file: str, *path: str) -> Field:
    """The text as a key and as a value."""

    def put(parts: Parts, text: str) -> None:
        place = parts[file]
        for key in path:
            place = place.setdefault(key, {})
        place[text] = text

    return put


def _value(file: str, *path: str) -> Field:
    def put(parts: Parts, text: str) -> None:
        place = parts[file]
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = text

    return put


def _raw_config(parts: Parts, text: str) -> None:
    parts["comments"].append(text)


FIELDS: Mapping[str, Field] = {
    "candidate's prompt": _row("candidates", "prompt"),
    "candidate's response": _row("candidates", "response"),
    "signal": lambda parts, text: parts["candidates"].append(
        made_runs.candidate(
            "one", 1.0, step=len(parts["candidates"]), signals={text: 1.0}, weighted={text: 1.0}
        )
    ),
    "pair's prompt": _both("prompt"),
    "pair's response": _both("response"),
    "evaluated prompt": _evaluated("prompt"),
    "evaluated response": _evaluated("response"),
    "metric of evaluations": _evaluated_metric,
    "system of responses": _response_system,
    "metric of responses": _response_metric,
    "metric": lambda parts, text: parts["metrics"].append({"step": 1, text: 0.5, f"signal/{text}": 0.5}),
    "evaluation": lambda parts, text: parts["metrics"].append({"step": 1, f"evaluation/{text}": 0.5}),
    "warning": lambda parts, text: parts["metrics"].append({"step": 1, "warning": text}),
    "compared system": _system,
    "compared metric": _metric,
    "not for this data": _keyed("summary", "not_for_this_data"),
    "cost": lambda parts, text: parts["summary"].setdefault("cost", {}).update({text: {text: 1.0}}),
    "reason of a stop": _value("summary", "stopped"),
    "identity": _keyed("run", "identity"),
    "id": _value("run", "id"),
    "commit": _value("run", "git"),
    "model's name": _value("config", "model", "name"),
    "data's name": _value("config", "data", "source"),
    "reward's name": _value("config", "reward", "preset"),
    "seed": _value("config", "train", "seed"),
    "steps": _value("config", "train", "steps"),
    "config's text": _raw_config,
    "name of the run": lambda parts, text: parts.update(name=text.replace("/", "∕").replace("\0", "")),
}


def prove(count: int, random: Random, advance: Callable[[], None]) -> list[str]:
    """The payloads, out of ``count`` dealt over all fields, that ran, loaded something or became an element."""
    failures, fields = [], list(FIELDS)
    order = [(vector, field) for vector in VECTORS for field in fields]
    random.shuffle(order)
    with browser() as started:
        for first in range(0, min(count, COUNT), A_PAGE):
            numbers = range(first, min(first + A_PAGE, count, COUNT))
            dealt = {
                n: (order[n % len(order)][1], payload(order[n % len(order)][0], n, random)) for n in numbers
            }
            failures += outcome(started, dealt)
            for _ in numbers:
                advance()
    return failures


def outcome(started: Browser, dealt: Mapping[int, tuple[str, str]]) -> list[str]:
    """What the payloads of one page did; ``dealt``: number -> (field, payload)."""
    with tempfile.TemporaryDirectory() as directory:
        path = write_report(_made(Path(directory), dealt), Path(directory) / "report.html")
        page = started.new_page(reduced_motion="reduce")
        page.add_init_script("window.ran = []; window.canary = (number) => window.ran.push(number);")
        watched = watch(page)
        page.goto(path.as_uri())
        _use(page)
        failures = _found(page, watched, dealt)
        page.close()
    return failures


def _made(place: Path, dealt: Mapping[int, tuple[str, str]]) -> list[Path]:
    parts: Parts = {
        "name": "run",
        "candidates": made_runs.group(),
        "responses": [],
        "evaluations": [],
        "evaluated_metrics": [],
        "more_systems": [],
        "more_metrics": [],
        "metrics": made_runs.metrics(),
        "summary": json.loads(json.dumps(made_runs.SUMMARY)),
        "run": {"id": "1"},
        "config": {},
        "comments": [],
    }
    for field, text in dealt.values():
        FIELDS[field](parts, text)
    _response(parts, "last", "prompt")
    of_base = [row for row in parts["responses"] if row["system"] == "base"]
    parts["responses"] += [
        row | {"system": name} for name in dict.fromkeys(parts["more_systems"]) for row in of_base
    ]
    for row in parts["responses"]:
        row.update(dict.fromkeys(parts["more_metrics"], 0.25))
    # JSON is YAML, and a comment keeps the rest as it is typed.
    config = json.dumps(parts["config"]) + "".join(
        f"\n# {line}" for text in parts["comments"] for line in text.split("\n")
    )
    name = parts["name"].encode("utf-8", "replace")[:200].decode("utf-8", "ignore")
    kept = {key: parts[key] for key in ("candidates", "metrics", "summary", "run")}
    run = made_runs.make_run(place / name, config="", **kept)
    (run / "config.yaml").write_text(config, encoding="utf-8", errors="replace")
    made_runs.write(run / "responses.jsonl", parts["responses"])
    _evaluated("prompt")(parts, "last")
    parts["evaluations"].sort(key=lambda row: row["step"])
    for row in parts["evaluations"]:
        row.update(dict.fromkeys(parts["evaluated_metrics"], 0.25 + row["step"]))
    trained = made_runs.make_run(place / "trained", candidates=made_runs.explained_group())
    made_runs.write(trained / "evaluations.jsonl", parts["evaluations"])
    return [run, trained]


def _use(page: Page) -> None:
    """Everything that draws: all candidates and their words, all pairs, all curves, every choice once."""
    page.evaluate("""() => {
      const fire = (one, kind) => one.dispatchEvent(new Event(kind, { bubbles: true }));
      for (const one of document.querySelectorAll("details")) one.open = true;
      const grown = () => {
        for (const more of document.querySelectorAll(".more"))
          for (let k = 0; k < 20 && !more.hidden; k++) more.click();
      };
      const [before, after] = ["before", "after"].map((name) => document.getElementById(`pairs-${name}`));
      [before.selectedIndex, after.selectedIndex] = [after.length - 2, after.length - 1];
      fire(after, "input");
      grown();
      document.getElementById("zoom-from").value = "2";
      fire(document.getElementById("zoom-from"), "input");
      for (const select of document.querySelectorAll("select")) {
        for (const option of [...select.options]) { select.value = option.value; fire(select, "input"); }
        select.selectedIndex = select.id === "pairs-after" ? 1 : 0;
        fire(select, "input");
      }
      grown();
      for (const button of document.querySelectorAll("#browse-list button")) {
        button.click();
        for (const word of document.querySelectorAll("#browse-detail .words span")) word.click();
      }
      for (const picture of document.querySelectorAll(".chart svg")) {
        picture.focus();
        picture.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
      }
    }""")


def _found(page: Page, watched: Watched, dealt: Mapping[int, tuple[str, str]]) -> list[str]:
    ran = [f"ran {_named(number, dealt)}" for number in page.evaluate("window.ran")]
    asked = [f"asked for {address}" for address in watched.asked]
    # The policy says what it refused: that was markup.
    said = [f"said {line[:200]}" for line in (*watched.said, *watched.dialogs)]
    strange = [f"became an element: {html}" for html in page.evaluate(STRANGE, TAGS)]
    here = [] if page.url.startswith("file:") else [f"went to {page.url}"]
    there = (
        ""
        if page.evaluate("document.querySelector('#browse-detail .card') !== null")
        else "shows no candidate"
    )
    return [*ran, *asked, *said, *strange, *here, *filter(None, [there])]


def _named(number: int, dealt: Mapping[int, tuple[str, str]]) -> str:
    field, text = dealt.get(number, ("?", "?"))
    return f"{number} in {field}: {text}"
