"""Signals are kept until somebody looks, the time limit is a request too, and afterwards all is as before."""

import os
import signal
import threading
import time

import pytest

from cagsr.errors import InterruptedRunError, StoppedError
from cagsr.io import shutdown as stops
from cagsr.io.shutdown import Stops


def a_loop(*numbers):
    """A loop that these signals reach, that looks twice, and that stops as it is asked."""
    with Stops() as asked:
        assert asked.requested() == 0
        for number in numbers:
            os.kill(os.getpid(), number)
        assert asked.requested() == asked.requested() == numbers[-1]
        raise asked.error(numbers[-1], "here")


def the_end_of_a_loop(number):
    """A signal that nobody looks for any more."""
    with Stops():
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_until_it_is_looked_for(number):
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match="here; everything is saved"):
        a_loop(number)
    assert signal.getsignal(number) is before


def test_ctrl_c_twice_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt):
        a_loop(signal.SIGINT, signal.SIGINT)


def test_a_second_sigterm_changes_nothing():
    with pytest.raises(StoppedError, match="by SIGTERM here"):
        a_loop(signal.SIGTERM, signal.SIGTERM)


def test_a_signal_that_came_too_late_for_the_loop_is_heard_by_whoever_goes_on():
    with pytest.raises(KeyboardInterrupt):
        the_end_of_a_loop(signal.SIGINT)
    before = signal.signal(signal.SIGTERM, stops.terminate)
    try:
        with pytest.raises(stops.Terminated):
            the_end_of_a_loop(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_time_limit_counts_from_the_start_and_leaves_room_for_the_longest_round(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stops.start_clock()
    with Stops(max_seconds=10.0) as asked:
        now[0] = 103.0  # what came before the first look is no round
        assert asked.requested() == 0
        now[0] = 105.0  # a round of two seconds
        assert asked.requested() == 0
        now[0] = 107.9
        assert asked.requested() == -1  # 7.9 and another 2.9 would be beyond ten
    with Stops() as endless:
        now[0] = 1e9
        assert endless.requested() == 0


def test_work_may_come_to_its_end_for_a_few_seconds_after_a_signal_and_not_beyond_the_time_limit(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stops.start_clock()
    with Stops(max_seconds=60.0) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (asked.requested(), asked.overdue()) == (signal.SIGTERM, 0)
        now[0] = 103.0
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does not begin the seconds anew
        now[0] = 104.9
        assert asked.overdue() == 0
        now[0] = 105.0
        assert asked.overdue() == signal.SIGTERM
        asked._signal = None
        now[0] = 159.9
        assert asked.overdue() == 0
        now[0] = 160.0
        assert asked.overdue() == -1
        asked._signal = None
    with Stops() as asked:
        asked.ask()  # a callback means the end of a step
        now[0] = 1e6
        assert asked.overdue() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_waits_for_somebody_else_hears_of_a_signal_at_once_and_it_stays_asked(number):
    def wait():
        with stops.waiting():
            os.kill(os.getpid(), number)
            time.sleep(10)

    with Stops() as asked:
        with pytest.raises(stops.Unfinished):
            wait()
        assert asked.requested() == number
        asked._signal = None


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
