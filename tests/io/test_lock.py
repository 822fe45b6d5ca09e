"""A lock is held by one process, says by whom, and goes with its holder however that ends."""

import json
import os
import signal
import subprocess
import sys

import pytest

from cagsr.errors import InputError
from cagsr.io.lock import LOCK, Lock

HOLDER = """
import sys, time
from pathlib import Path
from cagsr.io.lock import Lock
lock = Lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_another_process_is_told_who_holds_it_and_gets_it_once_that_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=rf"is being written by process {holder.pid} on .* since 20"):
            Lock.take(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        Lock.take(tmp_path).release()
    finally:
        holder.kill()
        holder.communicate()


def test_releasing_lets_others_in_and_twice_does_no_harm(tmp_path):
    lock = Lock.take(tmp_path)
    lock.release()
    lock.release()
    Lock.take(tmp_path).release()
    assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_lock_whose_holder_cannot_be_read_is_still_held(tmp_path):
    lock = Lock.take(tmp_path)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(InputError, match="is being written by a run that is starting just now"):
        Lock.take(tmp_path)
    lock.release()
