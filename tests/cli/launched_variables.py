"""Keeps what a launcher set for the first of its processes.

Run by test_sharded_training.py: ``accelerate launch --config_file FSDP.yaml launched_variables.py FILE``.
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__" and os.environ["RANK"] == "0":
    given = {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
    Path(sys.argv[1]).write_text(json.dumps({**given, "WORLD_SIZE": os.environ["WORLD_SIZE"]}))
