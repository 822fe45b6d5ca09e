"""What a terminal sees: help, widths, no colour, a log of plain lines, Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

import forked
from cagsr.cli.options import console_for
from cagsr.evaluation.tables import comparison_table, legend, shaded, shades
from cagsr.io.terminal import say, wrapped
from cagsr.training.progress import Display
from cagsr.types import Prompt, Turn

COMMANDS = ["demo", "sft", "train", "eval", "score", "doctor", "reference"]


def test_the_version_is_printed_and_nothing_else_is_done(cagsr):
    outcome = cagsr("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"cagsr {version('cagsr')}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cagsr, command):
    outcome = cagsr(command, "--help")
    assert outcome.code == 0
    assert f"Example: cagsr {command}" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_help_lists_every_command_and_the_exit_codes(cagsr):
    outcome = cagsr("--help")
    assert outcome.code == 0
    assert all(f" {command} " in outcome.out for command in COMMANDS)
    assert "Exit codes: 0 done, 2 bad input" in outcome.out


def test_a_misspelt_command_gets_a_suggestion(cagsr):
    outcome = cagsr("trian")
    assert outcome.code == 2
    assert "Did you mean 'train'?" in outcome.err


def test_help_and_mistakes_in_the_config_import_no_torch(tmp_path):
    code = """
import sys
from cagsr.cli.main import main
for arguments in (["--help"], ["train", "--help"], ["reference"], ["demo", "--help"]):
    sys.argv = ["cagsr", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
print(sorted({"torch", "transformers", "accelerate"} & set(sys.modules)))
"""
    out = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert out.splitlines()[-1] == "[]"


SUMMARY = {
    "systems": {
        name: {
            metric: {"mean": mean, "low": mean * 0.9, "high": mean * 1.1}
            for metric, mean in {
                "slot_error_rate": 1.25,
                "coverage": 1.0,
                "perfect": 0.0,
                "clean": 0.0,
                "hallucination": 0.123,
                "repetition": 0.5,
                "length": length,
            }.items()
        }
        for name, length in (("base", 22.6), ("best of 8 by self-certainty", 122.6))
    }
}


def consoles(width):
    """A terminal with colours, one without, and a file."""
    yield Console(file=StringIO(), width=width, force_terminal=True, color_system="truecolor")
    yield Console(file=StringIO(), width=width, force_terminal=True, no_color=True, color_system="truecolor")
    yield Console(file=StringIO(), width=width)


def shown_in(console):
    """What stands there, its lines no longer than the terminal is wide, and no escape codes in a file."""
    text = console.file.getvalue()
    if not console.is_terminal:
        assert "\x1b" not in text
        assert "\r" not in text
    plain = Text.from_ansi(text).plain
    assert max(map(len, plain.splitlines())) <= console.width
    assert "…" not in plain
    return plain


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("kind", range(3))
def test_the_table_fits_and_no_number_is_cut(width, kind):
    console = list(consoles(width))[kind]
    console.print(comparison_table(SUMMARY, "slots, held out", width))
    text = shown_in(console)
    for shown in ("slot", "errors", "coverage", "clean", "invented", "repeated", "length"):
        assert shown in text
    # 20.34 to 24.86: the 0 of 20 belongs to the number, that of 0.111 does not.
    assert "20.3–24.9" in text
    assert "110–135" in text
    assert ".111–.135" in text
    assert "1.12–1.38" in text
    assert ".900–1.10" in text


@pytest.mark.parametrize("colour", [True, False])
def test_a_shaded_prompt_without_colour_has_digits(colour):
    prompt = Prompt("city lyon", (5, 7, 1), ((0, 4), (5, 9), (0, 0)), (Turn("user", 0, 9),), 0)
    text = shaded(prompt, [0.1, 0.5, 0.9], colour)
    assert text.plain == ("city lyon" if colour else "city lyon(5)")
    assert bool(text.spans) == colour


ROW = {
    "signal/coverage": 0.19,
    "signal/surprise": -0.05,
    "signal/repetition": 0.0,
    "signal/unfinished": -1.0,
    "reward": 1.25,
    "reward_spread": 1.5,
    "kl": 0.01,
    "entropy": 1.3,
    "length": 7.0,
    "repetition": 0.1,
    "tokens_per_second": 301.0,
}


@pytest.mark.parametrize("width", [80, 200])
def test_the_moving_line_shows_every_number_whatever_the_width(width):
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    with Display(console, 80, "train") as display:
        display.on_step(3, ROW, None)
        display.progress.refresh()
    shown = console.file.getvalue()
    assert "3/80" in shown
    assert "unfinished -1" in shown
    assert "301 tok/s" in shown
    assert "…" not in shown


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (80, "step 10/80  reward 1.25  kl 0.010  70 s left  length 7.0  repeated 0.10"),
        (
            200,
            "step 10/80  reward 1.25  kl 0.010  70 s left  length 7.0  repeated 0.10  entropy 1.30  spread 1.5  "
            "301 tok/s  coverage 0.19  surprise -0.05  repetition 0  unfinished -1",
        ),
    ],
)
def test_a_log_has_one_line_every_ten_steps_with_the_time_that_is_left(width, line, monkeypatch):
    console = Console(file=StringIO(), width=width)
    seconds = iter(range(100))  # the clock starts at 0 and every step takes a second
    monkeypatch.setattr("cagsr.training.progress.time.perf_counter", lambda: next(seconds))
    with Display(console, 80, "train") as display:
        for step in range(1, 11):
            display.on_step(step, ROW, None)
    assert shown_in(console).splitlines() == [line.replace("10/80", "1/80").replace("70 s", "79 s"), line]


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("kind", range(3))
def test_evaluations_and_warnings_break_between_numbers_only(width, kind):
    console = list(consoles(width))[kind]
    names = [f"some_metric_{place}" for place in range(9)]
    path = "/a-path-that-may-be-copied" * 5
    with Display(console, 80, "train") as display:
        display.on_evaluation(10, {"step": 10, **dict.fromkeys(names, 0.25)})
    text = shown_in(console)
    assert "evaluation at step 10" in text
    # 21 characters, and 21 more for each number.
    shown = names if kind < 2 else names[: 2 if width == 80 else 8]
    assert [name for name in names if f"{name} 0.250" in text] == shown
    say(console, f"warning: {'KL is high ' * 8}in {path}, at .250 [.125, .375] \x1b[31m")
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    assert f"  {path}," in lines or width == 200
    assert path in "\n".join(lines)
    assert "[.125, .375]" in "\n".join(lines)
    assert "\\x1b[31m" in console.file.getvalue()


def test_a_number_and_its_interval_stay_on_one_line():
    text = wrapped("it ranks the samples well: AUC 0.88 [0.81, 0.96]", 40, indent="  ")
    assert text == "  it ranks the samples well: AUC\n    0.88 [0.81, 0.96]"


@pytest.mark.parametrize("width", [80, 200])
def test_a_long_name_breaks_at_its_hyphens_and_a_huge_number_is_shortened(width):
    metric = {"mean": -1234567.8, "low": -2345678.9, "high": 12345.6}
    names = ["base", "the-best-of-them-all"]
    systems = {name: {"slot_error_rate": metric} | {f"m{n}": metric for n in range(9)} for name in names}
    console = Console(file=StringIO(), width=width)
    console.print(comparison_table({"systems": systems}, "title", width))
    text = shown_in(console)
    assert "-2e+6–1e+4" in text
    assert "the-best-of-them-all" in text
    # What fits beside a name of 20 in columns of 12: 5 in 80, all 9 in 200.
    assert sum(" m0 " in line or " m5 " in line for line in text.splitlines()) == (2 if width == 80 else 1)


def test_shades_need_colours_enough_and_else_there_are_digits_and_a_legend():
    def made(system, **how):
        return Console(file=StringIO(), force_terminal=True, color_system=system, **how)

    assert shades(made("256"))
    assert not shades(made("standard"))
    assert not shades(made("truecolor", no_color=True))
    assert not shades(Console(file=StringIO()))
    assert legend(colour=False).plain.startswith("(9) the strongest, (3) a third of it")
    assert legend(colour=True).plain.split() == ["weak", "1", "2", "3", "4", "5", "strong"]


def test_an_error_breaks_between_words_in_a_terminal_and_is_one_line_in_a_log(cagsr, monkeypatch):
    one = cagsr("train", "data.task=none")
    assert (one.code, one.err.count("\n")) == (2, 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = cagsr("train", "data.task=none").err.splitlines()
    assert lines[0] == 'error: override data.task: got "none",'
    assert max(map(len, lines)) <= 40
    assert " ".join(map(str.strip, lines)) == one.err.strip()


@pytest.mark.parametrize(
    ("terminal", "changes", "moves"),
    [(True, {}, True), (True, {"CI": "true"}, False), (False, {"FORCE_COLOR": "1"}, False)],
)
def test_what_moves_is_for_a_person_s_terminal_only(terminal, changes, moves, monkeypatch):
    for name in ("CI", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **changes}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert console_for(as_json=False).is_interactive == moves


def train_in(directory, models, steps):
    settings = ["data.task=slots", "data.count=11", "data.evaluation_count=3", f"model.name={models / 't5'}"]
    settings += [f"train.steps={steps}", "train.prompts_per_step=2", "sampling.candidates=2"]
    return ["train", *settings, "sampling.max_new_tokens=5", f"run.directory={directory}"]


def test_ctrl_c_ends_with_130_and_a_message_and_the_log_has_no_control_characters(models, tmp_path):
    arguments = train_in(tmp_path / "run", models, 10_000)
    # A shell's background jobs ignore Ctrl-C, and their children would too: nohup make test, say.
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = forked.start(partial(forked.cagsr, arguments, before=heard), tmp_path, {"CI": "true"})
    try:
        wait_for(process, "step 10/")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert re.fullmatch(
        r"error: stopped by Ctrl-C after step \d+ of 10000; everything is saved, --resume goes on\n",
        process.err,
    )
    assert "step 1/10000" in process.out
    assert not {byte for byte in process.out.encode() if byte < 32} - {10}


def wait_for(process, said):
    for _ in range(600):
        if said in process.out:
            return
        if process.ended:
            pytest.fail(f"ended early: {process.err}")
        time.sleep(0.1)
    pytest.fail("nothing happened for a minute")


def test_a_terminal_gets_a_moving_line(models, tmp_path):
    seen = in_a_terminal(train_in(tmp_path / "run", models, 3), tmp_path)
    assert b"\x1b[" in seen
    assert "3/3" in seen.decode()
    assert b"step 1/3" not in seen
    assert Path(tmp_path / "run/model/model.safetensors").is_file()


def test_a_build_gets_plain_lines_within_the_width_though_its_log_calls_itself_a_terminal(models, tmp_path):
    seen = in_a_terminal(train_in(tmp_path / "run", models, 3), tmp_path, CI="true", NO_COLOR="1").decode()
    assert not set(re.findall("\x1b[^m]*m", seen)) - {"\x1b[2m", "\x1b[0m"}
    lines = [re.sub("\x1b[^m]*m", "", line) for line in seen.split("\r\n")]
    assert [line[:9] for line in lines if line.startswith("step ")] == ["step 1/3 ", "step 3/3 "]
    assert "\r" not in "".join(lines)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80


def in_a_terminal(arguments, cwd, **changes):
    """All that a terminal of 80 columns is sent by ``cagsr ARGUMENTS``."""
    parent, child = pty.openpty()
    env = {"TERM": "xterm-256color", "COLUMNS": "80", "CI": "", **changes}
    process = forked.start(
        partial(forked.cagsr, arguments, before=partial(attach, os.ttyname(child))), cwd, env
    )
    seen, ended = b"", False
    while True:
        readable, _, _ = select.select([parent], [], [], 0.1)
        if readable:
            seen += os.read(parent, 65536)
        elif ended:
            break
        else:
            ended = process.ended  # what it wrote last is still to be read
    os.close(parent)
    os.close(child)
    assert process.wait() == 0, seen.decode()
    return seen


def attach(terminal):
    """Standard output and error of this process go to that terminal."""
    opened = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(opened, stream.fileno())
    os.close(opened)
