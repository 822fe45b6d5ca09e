"""``cagsr`` under FSDP2 on CPU processes, in which Accelerate itself does not shard: `sharded.fsdp2` says how.

Run by test_sharded_training.py: ``accelerate launch --config_file FSDP.yaml sharded_cli.py ARGUMENTS``.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate

sys.path.insert(0, str(Path(__file__).parents[1]))

import forked
from cagsr.training import trainer as train
from sharded import fsdp2

VARIABLES = "launched.json"
"""A file with what the launcher set."""


def accelerator(**settings: Any) -> accelerate.Accelerator:
    return fsdp2(accelerate.Accelerator(**settings))


def sharded(arguments: list[str]) -> None:
    train.accelerated = accelerator
    forked.cagsr(arguments)


if __name__ == "__main__":
    given = {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    if os.environ["RANK"] == "0":
        Path(VARIABLES).write_text(json.dumps(given))
    sharded(sys.argv[1:])
