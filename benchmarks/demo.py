"""The demo, whole, as somebody who tries the program first sees it."""

import subprocess
import sys
import time
from tempfile import TemporaryDirectory

from benchmarks.protocol import Bound, Taken, spread
from benchmarks.record import Part, Plan, Table

ABOUT = """`cagsr demo` in a process of its own, from its start to its last line, on all cores; once, because
it is long."""


def measure(plan: Plan) -> Part:
    # Where the plan is quick, a demo that trains for two steps shows that it runs.
    shorter = ["train.steps=2", "train.warmup_steps=0"] if plan.quick else []
    with TemporaryDirectory() as directory:
        started = time.perf_counter()
        command = [sys.executable, "-m", "cagsr", "demo", "--directory", directory + "/demo", *shorter]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    bounds = [] if plan.quick else [Bound("the demo, whole", "most", 180.0, spread([seconds]), " s")]
    tables = [Table("", ["Demo", "Wall seconds"], [["encoder-decoder", f"{seconds:.0f}"]])]
    return Part("The demo", ABOUT, tables, bounds, {"demo": [Taken(seconds, seconds)]})
