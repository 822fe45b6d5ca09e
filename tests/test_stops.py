"""Signals are kept until somebody looks, the time limit is a request too, and afterwards all is as before."""

import os
import signal
import threading
import time

import pytest

from cagsr import stops
from cagsr.errors import InterruptedRunError, StoppedError
from cagsr.stops import Stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_until_it_is_looked_for(number):
    before = signal.getsignal(number)
    with Stops() as asked:
        assert asked.requested() == 0
        os.kill(os.getpid(), number)
        assert asked.requested() == number
        assert asked.requested() == number
    assert signal.getsignal(number) is before


def test_ctrl_c_twice_interrupts_at_once():
    with Stops():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_changes_nothing():
    with Stops() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.requested() == signal.SIGTERM


def test_the_time_limit_counts_from_the_start_and_leaves_room_for_the_longest_round(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stops.start_clock()
    now[0] = 103.0
    with Stops(max_seconds=10.0) as asked:
        now[0] = 105.0  # a round of two seconds
        assert asked.requested() == 0
        now[0] = 107.9
        assert asked.requested() == -1  # 7.9 and another 2.9 would be beyond ten
    with Stops() as endless:
        now[0] = 1e9
        assert endless.requested() == 0


def test_what_a_shell_had_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stops() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.requested() == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_no_handler_is_set():
    found = []

    def run():
        with Stops() as asked:
            found.append((asked.requested(), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(0, before)]


def test_what_is_raised_says_what_asked():
    assert type(Stops.error(signal.SIGINT, "after step 3")) is InterruptedRunError
    for request, reason in ((signal.SIGTERM, "by SIGTERM"), (-1, "by the time limit")):
        error = Stops.error(request, "after step 3")
        assert str(error) == f"stopped {reason} after step 3; everything is saved, --resume goes on"
        assert type(error) is StoppedError
