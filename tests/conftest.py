"""What holds for all tests."""

import os
import signal

# Triton reads it when it is imported, which torch does as well: kernels then run on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Bitwise claims are claims about one order of summation. torch reads it when it is imported, and so does every process
# that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_configure():
    # A job in the background of a shell (nohup make test) ignores Ctrl-C, and what the tests start would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
