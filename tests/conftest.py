"""What holds for all tests."""

import os
import signal

# Triton reads it when it is imported, which torch does as well: kernels then run on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure():
    # A job in the background of a shell (nohup make test) ignores Ctrl-C, and what the tests start would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
