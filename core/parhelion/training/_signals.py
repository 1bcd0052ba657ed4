"""Signals that end a run in order: the current update is finished, a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["stop_on_signals"]

_REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "preempted"}


@contextmanager
def stop_on_signals(stop: Callable[[str], None]) -> Generator[None]:
    """Call ``stop`` with the reason at the first SIGINT or SIGTERM; leave a second one to the former handlers.

    Outside the main thread, where Python takes no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in _REASONS}

    def put_back() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def on_signal(number: int, _: FrameType | None) -> None:
        put_back()
        stop(_REASONS[signal.Signals(number)])

    for number in _REASONS:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        put_back()
