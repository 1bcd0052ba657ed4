"""``python -m parhelion.launch -n 2 train.py --its arguments``: several processes of a program on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from parhelion.processes import launch

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, and return the exit status; see :func:`parhelion.processes.launch`."""
    parser = argparse.ArgumentParser("python -m parhelion.launch", description=__doc__)
    parser.add_argument("-n", "--num-processes", type=_positive, required=True, help="how many processes")
    parser.add_argument("-m", "--module", action="store_true", help="the program is a module, as after python -m")
    parser.add_argument("--no-prefix", action="store_true", help="pass on what they print as it is")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds for the others to end when one has failed")
    parser.add_argument("program", help="a Python script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what it is given")
    given = parser.parse_args(arguments)
    command = [sys.executable, *(["-m"] if given.module else []), given.program, *given.arguments]
    return launch(command, given.num_processes, grace=given.grace, prefix=not given.no_prefix)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; expected 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
