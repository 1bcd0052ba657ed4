"""How a row reads: the words that console, text log and progress bar share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Named columns that are not just "name value".
EPOCH = "epoch"
RATE = "samples_per_second"
TIME = "time"

_RATE_WITHOUT_DECIMALS = 100
_FOUR_DIGITS = 1e3
_EXPONENT = 1e7


def step_text(step: int, total: float | None = None) -> str:
    """Return ``iteration 1200``, or ``iteration 1200/5000`` where the total is known and finite."""
    return f"iteration {step}{_of(total)}"


def epoch_text(row: Mapping[str, float], total: float | None = None) -> str:
    """Return ``epoch 3/10`` from the row's ``epoch``; an empty text without one."""
    return f"epoch {_number_text(row[EPOCH])}{_of(total)}" if EPOCH in row else ""


def rate_text(row: Mapping[str, float]) -> str:
    """Return ``2,310 samples/s`` from the row's ``samples_per_second``; an empty text without one."""
    if RATE not in row:
        return ""
    rate = row[RATE]
    return f"{rate:,.0f} samples/s" if abs(rate) >= _RATE_WITHOUT_DECIMALS else f"{rate:.3g} samples/s"


def value_texts(row: Mapping[str, float]) -> list[str]:
    """Return ``name value`` for every plain value in the caller's order: neither epoch, nor rate, nor time.

    Fractions have four significant digits, learning rates (``lr`` or ``learning_rate`` as a word of the name)
    two.
    """
    return [f"{name} {_value_text(name, row[name])}" for name in row if name not in (EPOCH, RATE, TIME)]


def one_line(texts: Iterable[str]) -> str:
    """Return the texts that are not empty, two spaces apart, as one line whatever a name contains."""
    return "  ".join(" ".join(text.splitlines()) for text in texts if text)


def _of(total: float | None) -> str:
    return "" if total is None or total == float("inf") else f"/{_number_text(total)}"


def _value_text(name: str, value: float) -> str:
    words = re.split(r"[^a-z0-9]+", name.lower())
    if "lr" in words or "learning_rate" in name.lower():
        return f"{value:.1e}"
    return _number_text(value)


def _number_text(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if _FOUR_DIGITS <= abs(value) < _EXPONENT:
        return f"{value:.0f}"
    # '#' keeps the zeros that make columns of numbers comparable; it also leaves a bare point behind.
    return f"{value:#.4g}".removesuffix(".")
