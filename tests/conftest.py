"""What holds for all tests."""

import signal


def pytest_configure():
    # A job in the background of a shell (nohup make test) ignores Ctrl-C, and what the tests start would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
