from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from robustclip.runs.processes import Caught, catching_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catching_signals() as caught:
        assert caught.signal is None
        signal.raise_signal(number)
        assert caught.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="odd"), catching_signals():
        raise ValueError("odd")
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_catches_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[tuple[Caught, object]] = []

    def work() -> None:
        with catching_signals() as caught:
            found.append((caught, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(Caught(None), before)]


def forked(number: int) -> int:
    """The exit status of a child forked in the block, to which a signal is sent while it works for half a second."""
    with catching_signals():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, b"!")
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                time.sleep(0.01)
            os._exit(signal.alarm(0))
        os.read(read, 1)
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process")  # is multi-threaded: torch's threads, which the child leaves alone
def test_readers_of_data_outlive_the_signals_of_a_job() -> None:
    assert forked(signal.SIGINT) == 0
    assert 1 <= forked(signal.SIGTERM) <= 30, "it has half a minute left"
