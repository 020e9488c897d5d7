"""Signals set a flag; what may be cut is cut."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from iiae_cli.common.errors import IiaeError, Interrupted
from iiae_cli.training.signals import Cut, StopFlag, signal_of, stop_on_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_the_flag_remembers_the_signal_and_nothing_else_happens() -> None:
    with stop_on_signals() as flag:
        assert not flag.raised()
        send(signal.SIGTERM)
        assert flag.raised() and flag.exit_code == 75
        send(signal.SIGUSR2)
        assert flag.exit_code == 75


def test_handlers_come_back_unless_the_process_is_on_its_way_out() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with stop_on_signals():
        send(signal.SIGTERM)
    send(signal.SIGTERM)  # would end this process
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_another_signal_may_announce_preemption() -> None:
    with stop_on_signals(preempt="usr1") as flag:
        send(signal.SIGUSR1)
        assert flag.exit_code == 75
    assert signal_of("SIGUSR1") == signal_of("USR1") == signal.SIGUSR1
    for name in ("KILL", "nonsense", "CHLD"):
        with pytest.raises(IiaeError, match="--preempt-signal") as caught:
            signal_of(name)
        assert "USR2" in caught.value.hint


def test_what_may_be_cut_is_cut_with_the_signals_exit_code() -> None:
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        with pytest.raises(Interrupted) as caught, stop_on_signals() as flag, flag.cuttable():
            send(number)
            raise AssertionError("the work goes on")
        assert caught.value.exit_code == code


def test_a_raised_flag_lets_nothing_begin_that_may_be_cut() -> None:
    with stop_on_signals() as flag:
        send(signal.SIGTERM)
        with pytest.raises(Cut), flag.cuttable():
            raise AssertionError("the work begins")


def test_a_second_signal_leaves_the_way_out_in_peace() -> None:
    with stop_on_signals() as flag:
        cleaned = False
        with pytest.raises(Cut), flag.cuttable():
            try:
                send(signal.SIGTERM)
            finally:
                send(signal.SIGTERM)
                cleaned = True
        assert cleaned


def test_saving_is_never_broken_off_but_a_step_is_by_the_second_ctrl_c() -> None:
    with stop_on_signals() as flag:
        with flag.saving():
            send(signal.SIGINT)
            send(signal.SIGINT)
        assert flag.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_time_limit_raises_the_flag_and_cuts_what_it_may() -> None:
    assert StopFlag(time_limit=0).raised() and not StopFlag(time_limit=60).raised()
    with stop_on_signals(0.05) as flag:
        with flag.cuttable(on_time=False):
            time.sleep(0.1)
        started = time.monotonic()
        with pytest.raises(Cut), flag.cuttable():
            time.sleep(10)
        assert time.monotonic() - started < 5 and flag.exit_code == 75


def test_another_processs_reason_is_taken_over_but_not_over_ones_own() -> None:
    flag = StopFlag()
    flag.agree(0)
    assert not flag.raised()
    flag.agree(75)
    flag.agree(130)
    assert flag.exit_code == 75
