"""Signals set a flag, and nothing else happens until the work asks for it."""

import os
import signal
import time

import pytest

from iiae_cli.common.errors import STOPPING, Interrupted, Stop, stop_on_signals


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_the_flag_remembers_the_signal_until_the_work_asks(number):
    with stop_on_signals() as stop:
        stop.check()
        send(number)
        with pytest.raises(Interrupted, match="all of it is saved") as caught:
            stop.check("all of it is saved")
    assert caught.value.exit_code == 75


def test_handlers_come_back_unless_the_process_is_on_its_way_out():
    before = [signal.getsignal(number) for number in STOPPING]
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in STOPPING] == before
    with stop_on_signals():
        send(signal.SIGTERM)
    send(signal.SIGTERM)  # would end this process


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        send(signal.SIGINT)
        assert stop.exit_code == 130
        send(signal.SIGINT)


def test_a_deadline_stops_and_a_signal_goes_before_it():
    assert Stop(time.monotonic() + 60).exit_code is None
    stop = Stop(time.monotonic())
    assert stop.exit_code == 75
    stop.request(130)
    assert stop.exit_code == 130
