"""What holds for all tests."""

import gc
import os
import signal
import tempfile

import pytest

# Triton reads it when it is imported, which torch does as well: kernels then run on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Bitwise claims are claims about one order of summation. torch reads it when it is imported, and so does every process
# that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
# No test needs the hub, and without network every look at it is tried again for some twenty seconds.
os.environ["HF_HUB_OFFLINE"] = "1"


# What commands keep in the user's cache is kept for the tests of one process, and not in the user's.
_CACHE = tempfile.TemporaryDirectory(prefix="cagsr-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name


gc.disable()  # imports make objects by the hundred thousand and no garbage; looking for it takes a fifth of their time


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One more than there are cores, at most 4: a test that waits for a process of its own leaves its core idle."""
    return min((os.cpu_count() or 1) + 1, 4)


def pytest_collection_finish():
    gc.freeze()  # what was imported stays
    gc.enable()


def pytest_configure():
    # A job in the background of a shell (nohup make test) ignores Ctrl-C, and what the tests start would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
