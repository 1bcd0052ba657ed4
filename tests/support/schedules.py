"""Threads that take turns as a test wants it: between any two lines of a file another one may go on.

    schedule = Schedule(choose, traced=module.__file__)
    schedule.add("name", function)      # any number
    schedule.run()                      # AssertionError if all that are left wait for ever

``choose(names)`` returns which of the threads that can go on does so. In the functions, ``schedule.wait(condition)``
lets others go on until the condition holds. What one of them raises leaves ``run``.
"""

from __future__ import annotations

import sys
import threading


class Stopped(BaseException):
    """Ends a thread whose test is over."""


class Schedule:
    def __init__(self, choose, traced) -> None:
        self._choose, self._traced = choose, traced
        self._turns: dict[str, threading.Semaphore] = {}
        self._conditions: dict[str, object] = {}
        self._functions: dict[str, object] = {}
        self._back = threading.Semaphore(0)
        self._names = threading.local()
        self._error: BaseException | None = None
        self._is_over = False

    @property
    def names(self) -> list[str]:
        """Those that have not ended."""
        return [*self._functions]

    def add(self, name, function) -> None:
        self._functions[name], self._turns[name] = function, threading.Semaphore(0)
        self._conditions[name] = lambda: True

    def wait(self, condition) -> None:
        name = self._names.value
        self._conditions[name] = condition
        self._back.release()
        self._turns[name].acquire()
        if self._is_over:
            raise Stopped
        self._conditions[name] = lambda: True

    def run(self) -> None:
        threads = [threading.Thread(target=self._live, args=(name,), daemon=True) for name in self._functions]
        for thread in threads:
            thread.start()
        try:
            while self._functions and self._error is None:
                ready = [name for name in self._functions if self._conditions[name]()]
                assert ready, f"these wait for ever: {sorted(self._functions)}"
                self._turns[self._choose(ready)].release()
                self._back.acquire()
        finally:
            self._is_over = True
            for turn in self._turns.values():
                turn.release()
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _live(self, name) -> None:
        self._names.value = name
        self._turns[name].acquire()
        sys.settrace(self._trace)
        try:
            if not self._is_over:
                self._functions[name]()
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        finally:
            sys.settrace(None)
            self._functions.pop(name, None)
            self._back.release()

    def _trace(self, frame, event, _):
        if frame.f_code.co_filename != self._traced:
            return None
        return self._at_line

    def _at_line(self, frame, event, _):
        if event == "line":
            self.wait(lambda: True)
        return self._at_line
