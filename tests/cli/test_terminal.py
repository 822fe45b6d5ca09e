"""What a terminal sees: help, widths, no colour, a log of plain lines, Ctrl-C."""

import os
import pty
import re
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cagsr.display import Display
from cagsr.tables import comparison_table, shaded
from cagsr.types import Prompt

COMMANDS = ["demo", "sft", "train", "eval", "score", "doctor", "reference"]
CAGSR = [sys.executable, "-c", "from cagsr.cli import main; main()"]


def environment(**changes):
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}


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
from cagsr.cli import main
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


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_and_no_number_is_cut(width):
    console = Console(file=StringIO(), width=width)
    console.print(comparison_table(SUMMARY, "slots, held out"))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
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
    prompt = Prompt("city lyon", (5, 7, 1), ((0, 4), (5, 9), (0, 0)), ((0, 9),), 0)
    text = shaded(prompt, [0.1, 0.5, 0.9], colour)
    assert text.plain == ("city lyon" if colour else "city lyon(5)")
    assert bool(text.spans) == colour


@pytest.mark.parametrize("width", [80, 200])
def test_the_moving_line_shows_every_number_whatever_the_width(width):
    row = {
        "signal/coverage": 0.19,
        "signal/surprise": -0.05,
        "signal/repetition": 0.0,
        "signal/unfinished": -1.0,
    }
    row |= {"reward": 0.0, "reward_spread": 1.5, "kl": 0.01, "entropy": 1.3, "length": 7.0, "repetition": 0.1}
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    with Display(console, 80, "train") as display:
        display.on_step(3, row | {"tokens_per_second": 301.0}, None)
        display.progress.refresh()
    shown = console.file.getvalue()
    assert "3/80" in shown
    assert "unfinished -1" in shown
    assert "301 tok/s" in shown
    assert "…" not in shown


def train_in(directory, models, steps, *arguments):
    settings = ["data.task=slots", "data.count=11", "data.evaluation_count=3", f"model.name={models / 't5'}"]
    settings += [f"train.steps={steps}", "train.prompts_per_step=2", "sampling.candidates=2"]
    return [*CAGSR, "train", *settings, "sampling.max_new_tokens=5", f"run.directory={directory}", *arguments]


def test_ctrl_c_ends_with_130_and_a_message_and_the_log_has_no_control_characters(models, tmp_path):
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        train_in(tmp_path / "run", models, 10_000),
        stdout=log,
        stderr=subprocess.PIPE,
        env=environment(CI="true", PYTHONUNBUFFERED="1"),
        # A shell's background jobs ignore Ctrl-C, and their children would too: nohup make test, say.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(process, lambda: b"step 10/" in (tmp_path / "log").read_bytes())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        log.close()
    assert process.returncode == 130
    assert re.fullmatch(
        r"error: stopped by Ctrl-C after step \d+ of 10000; everything is saved, --resume goes on\n",
        err.decode(),
    )
    written = (tmp_path / "log").read_bytes()
    assert b"step 1/10000" in written
    assert not {byte for byte in written if byte < 32} - {10}


def wait_for(process, reached):
    for _ in range(600):
        if reached():
            return
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"ended early with {process.returncode}")
    pytest.fail("nothing happened for a minute")


def test_a_terminal_gets_a_moving_line(models, tmp_path):
    parent, child = pty.openpty()
    process = subprocess.Popen(
        train_in(tmp_path / "run", models, 3),
        stdout=child,
        stderr=child,
        env=environment(TERM="xterm-256color", COLUMNS="80"),
    )
    os.close(child)
    seen = b""
    while True:
        try:
            block = os.read(parent, 65536)
        except OSError:
            break
        if not block:
            break
        seen += block
    os.close(parent)
    assert process.wait() == 0, seen.decode()
    assert b"\x1b[" in seen
    assert "3/3" in seen.decode()
    assert b"step 1/3" not in seen
    assert Path(tmp_path / "run/model/model.safetensors").is_file()
