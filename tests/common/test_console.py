"""What a person sees of work under way, on a terminal and in a log file."""

import io
import sys

import pytest

from iiae_cli.common import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture(autouse=True)
def normal_verbosity():
    yield
    console.set_verbosity(0)


def test_a_log_gets_a_plain_line_every_few_seconds_and_later_every_minute(clock, capsys):
    with console.progress("training", 1000, items=(32, "pairs")) as work:
        work.facts["loss"] = "12.5"
        for step in range(1, 301):
            clock.now += 1.0
            work.update(step)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\x1b" not in err and len(lines) == 11 + 4
    assert lines[3] == "20/1000 steps, 32 pairs/s, 0:16:20 left, loss 12.5"


def test_a_table_shows_three_digits_and_no_exponents(capsys):
    console.print_table(["a"], [[0.00666667], [0.9967], [123456.7], [12.5]], header=False)
    assert capsys.readouterr().out.split() == ["0.00667", "0.997", "123457", "12.5"]


def test_work_within_work_shows_no_progress_of_its_own(clock, capsys):
    with console.progress("training", 2) as whole:
        with console.progress("validation", 3, "rows") as part:
            clock.now += 6
            part.update(1)
        whole.update(1)
    assert capsys.readouterr().err.startswith("1/2 steps")


def test_quiet_shows_no_progress(clock, capsys):
    console.set_verbosity(-1)
    with console.progress("training", 100) as work:
        clock.now += 60.0
        work.update(50)
    assert capsys.readouterr().err == ""


def test_the_pace_of_resumed_work_leaves_out_what_was_done_before(clock):
    work = console.Progress(1000, "steps")
    work.start_at(500)
    assert "0 steps/s, ? left" in work.line()
    clock.now += 10.0
    work.update(600)
    assert "10 steps/s, 0:00:40 left" in work.line()


def test_a_terminal_gets_a_live_bar_below_the_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress("training [sic]", 800, items=(32, "pairs")) as work:
        work.start_at(400)
        work.update(410)
        work.facts |= {"loss": "198.9", "Recall@1": "0.989 / 0.991"}
        console.say("a line between")
    text = terminal.getvalue()
    for part in ("training [sic]: 410/800 steps", "pairs/s", "left", "a line between", "━"):
        assert part in text, (part, text)
    for fact in ("loss 198.9", "Recall@1 0.989 / 0.991"):
        assert fact in text, (fact, text)
