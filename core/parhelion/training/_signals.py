"""Signals that end a run in order: the current update is finished, a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["stop_on_signals"]

_REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "preempted"}
# What each run that is going on has found. Runs that take turns may end in any order.
_formers: list[dict[signal.Signals, Any]] = []


@contextmanager
def stop_on_signals(stop: Callable[[str], None]) -> Generator[None]:
    """Call ``stop`` with the reason at the first SIGINT or SIGTERM; leave a second one to the former handlers.

    Outside the main thread, where Python takes no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in _REASONS}

    def put_back() -> None:
        for number, handler in former.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)
            for other in _formers:
                if other[number] is on_signal:
                    other[number] = handler

    def on_signal(number: int, _: FrameType | None) -> None:
        put_back()
        stop(_REASONS[signal.Signals(number)])

    for number in _REASONS:
        signal.signal(number, on_signal)
    _formers.append(former)
    try:
        yield
    finally:
        put_back()
        _formers[:] = [each for each in _formers if each is not former]
