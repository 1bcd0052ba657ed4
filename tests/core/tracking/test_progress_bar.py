import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion.tracking import ConsoleTracker, ProgressBar

ROW = {"epoch": 1, "val": 3, "loss": 0.12341, "samples_per_second": 2310.4}


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and the screen that one would show."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        return screen(self.getvalue())


def screen(text):
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]+", text):
        if piece == "\x1b[A":
            row -= 1
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in lines if line.strip()]


def plain(line):
    """Return a bar without the bar, and with its times and rates made equal."""
    line = re.sub(r"\|.*\|", "|", line)
    return re.sub(r"\d+:\d\d|[\d.]+(it/s|s/it)|\?(it/s)?", "*", line)


CHILD = """
from parhelion.tracking import ConsoleTracker, ProgressBar
bar, console = ProgressBar(3), ConsoleTracker(3)
for tracker in (console, bar):
    tracker.start(None)
for epoch in (1, 2):
    bar.begin_epoch(epoch, 40)
    for iteration in range(20 * (3 - epoch)):
        bar.update()
    bar.log(60, {"loss": 0.12341, "samples_per_second": 2310.4})
bar.close()
"""


def run_in_terminal(child, code):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = child(code, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    # A terminal whose other end is closed is an error to read on Linux.
    try:
        while chunk := os.read(ours, 1 << 16):
            shown += chunk
    except OSError:
        pass
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode()


@pytest.mark.processes
def test_a_terminal_shows_epochs_and_iterations_with_loss_and_throughput(child):
    epochs, iterations = screen(run_in_terminal(child, CHILD))
    assert plain(epochs) == "epoch 2/3     33%| [*<*]"
    assert plain(iterations) == "iteration     50%| 20/40 [*<*, *, loss 0.1234, 2,310 samples/s]"
    assert len(epochs) == len(iterations) == 99


@pytest.mark.processes
def test_a_pipe_gets_nothing_and_tqdm_is_not_even_imported(child):
    code = CHILD + "import sys\nassert 'tqdm' not in sys.modules\n"
    process = child(code, stdin=-3, stdout=-1, stderr=-1)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 0


def test_nothing_is_shown_if_not_enabled():
    terminal = Terminal()
    bar = ProgressBar(3, enabled=False, stream=terminal)
    bar.start(None)
    bar.begin_epoch(1, 10)
    bar.update(3)
    bar.log(3, ROW)
    bar.end_epoch(1)
    bar.close()
    assert terminal.getvalue() == ""


def test_without_a_stderr_nothing_is_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    bar = ProgressBar(3)
    bar.start(None)
    bar.update()
    bar.close()


def test_a_resume_in_mid_epoch_begins_where_the_run_was():
    terminal = Terminal()
    bar = ProgressBar(4, stream=terminal)
    bar.start(52)
    bar.begin_epoch(3, 20, done=12)
    assert [plain(line) for line in terminal.screen()] == [
        "epoch 3/4     50%| [*<*]",
        "iteration     60%| 12/20 [*<*, *]",
    ]
    bar.update(8)
    bar.end_epoch(3)
    bar.begin_epoch(4, 20)
    bar.update(5)
    bar.log(65, ROW)
    bar.close()
    assert [plain(line) for line in terminal.screen()] == [
        "epoch 4/4     75%| [*<*]",
        "iteration     25%| 5/20 [*<*, *, loss 0.1234, 2,310 samples/s]",
    ]


def test_what_was_done_before_does_not_count_in_the_time_left(monkeypatch):
    import tqdm

    now = [0.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    terminal = Terminal()
    bar = ProgressBar(10, stream=terminal)
    bar.start(800)
    bar.begin_epoch(9, 100, done=90)
    now[0] = 60.0
    bar.end_epoch(9)
    bar.update(5)
    bar.close()
    epochs, iterations = terminal.screen()
    assert epochs.endswith("[01:00<01:00]")
    assert "95/100 [01:00<01:00, 12.00s/it]" in iterations


def test_a_run_counted_in_iterations_goes_on_over_epochs():
    terminal = Terminal()
    bar = ProgressBar(iterations=100, stream=terminal)
    bar.start(30)
    bar.begin_epoch(3, 10)
    bar.update(10)
    bar.end_epoch(3)
    bar.begin_epoch(4, 10)
    bar.update(2)
    bar.close()
    assert [plain(line) for line in terminal.screen()] == [
        "epoch 4      [*]",
        "iteration     42%| 42/100 [*<*, *]",
    ]


@pytest.mark.parametrize("iterations", [None, float("inf")])
def test_totals_that_no_one_knows_are_left_out(iterations):
    terminal = Terminal()
    bar = ProgressBar(float("inf"), iterations, stream=terminal)
    bar.start(None)
    bar.begin_epoch(1)
    bar.update(7)
    bar.log(7, {"accuracy": 0.5})
    bar.close()
    assert [plain(line) for line in terminal.screen()] == [
        "epoch 1      [*]",
        "iteration    7 [*, *, accuracy 0.5000]",
    ]


def test_lines_of_the_console_go_above_the_bars(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    bar, console = ProgressBar(2), ConsoleTracker(2)
    for tracker in (console, bar):
        tracker.start(None)
    bar.begin_epoch(1, 10)
    for step in range(1, 4):
        bar.update()
        for tracker in (console, bar):
            tracker.log(step, ROW)
    bar.close()
    console.close()
    line = "epoch 1/2  iteration {}  val 3  loss 0.1234  2,310 samples/s"
    assert [plain(line) for line in terminal.screen()] == [
        *(line.format(step) for step in range(1, 4)),
        "epoch 1/2      0%| [*<*]",
        "iteration     30%| 3/10 [*<*, *, loss 0.1234, 2,310 samples/s]",
    ]


def test_a_bar_may_be_started_again_and_leaves_no_thread_behind():
    terminal = Terminal()
    threads = set(threading.enumerate())
    bar = ProgressBar(2, stream=terminal)
    for step in (None, 5):
        bar.start(step)
        bar.begin_epoch(2, 10)
        bar.update()
    bar.close()
    bar.close()
    assert set(threading.enumerate()) == threads
    assert len(terminal.screen()) == 4


def test_what_is_no_row_is_refused_even_where_nothing_is_shown():
    bar = ProgressBar(enabled=False)
    with pytest.raises(InvalidValueError, match="step is -1; expected an integer >= 0"):
        bar.start(-1)
    with pytest.raises(InvalidTypeError, match="the value 'loss' is 'low'; expected a real number"):
        bar.log(1, {"loss": "low"})
