"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Let Ctrl-C reach the commands that tests start: a shell starts its background jobs with SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
