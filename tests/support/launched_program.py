"""What the launcher starts in its tests: ``launched_program.py CASE``. Each process does something else by its rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from support.ranks import say

RANK = int(os.environ["RANK"])


def main(case) -> None:
    globals()[f"case_{case}"](*sys.argv[2:])


def wait() -> None:
    time.sleep(60)


def case_facts(*arguments) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    say(*(os.environ[name] for name in names), int(os.environ["MASTER_PORT"]) > 0, *arguments)
    say("own group", os.getpgid(0) == os.getpid())
    sys.stderr.write("no newline")


def case_exit(*statuses) -> None:
    """End by a status, or by a signal if it is negative; the others wait."""
    status = statuses[RANK]
    if status == "wait":
        wait()
    if int(status) < 0:
        os.kill(os.getpid(), -int(status))
    sys.exit(int(status))


def case_stubborn() -> None:
    """One fails; another hears of it and ends; another ends on SIGTERM; another does not, and has started something."""
    if RANK == 0:
        signal.signal(signal.SIGTERM, lambda *_: (say("terminated"), sys.exit(0)))
    if RANK == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        say("grandchild", child.pid)
    say("ready")
    if RANK == 2:
        time.sleep(0.5)
        sys.exit(7 + len(sys.stdin.read()))  # there is nothing to read
    wait()


def case_signals() -> None:
    def handle(number, _) -> None:
        say("got", signal.Signals(number).name)
        if number == signal.SIGTERM:
            sys.exit(75)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handle)
    say("ready", os.getpid())
    while True:
        time.sleep(0.01)


def case_deaf() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: say("got", signal.Signals(number).name))
    say("ready", os.getpid())
    while True:
        time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1])
