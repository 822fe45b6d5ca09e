"""``cagsr`` under FSDP2 on CPU processes, in which Accelerate itself does not shard: `sharded.fsdp2` says how.

Run by test_sharded_training.py: ``accelerate launch --config_file FSDP.yaml sharded_cli.py ARGUMENTS``.
"""

import sys
from pathlib import Path
from typing import Any

import accelerate

sys.path.insert(0, str(Path(__file__).parents[1]))

from cagsr.cli import main as cli
from cagsr.training import trainer as train
from sharded import fsdp2


def accelerator(**settings: Any) -> accelerate.Accelerator:
    return fsdp2(accelerate.Accelerator(**settings))


if __name__ == "__main__":
    train.accelerated = accelerator
    cli.main()
