"""What things cost, measured: `python -m benchmarks` writes docs/performance.json and docs/performance.md."""

import os

# Its profiler, which counts memory, otherwise says on stderr that it begins and ends.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
