"""How one process talks to the others that train with it: a thread that always answers, whatever the others do here."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final

from parhelion.errors import WorldError

from ._agreement import Member
from ._deadline import Deadlines
from ._gate import Gate
from ._hub import GATHER_TO_FIRST, Hub, describe_loss
from ._line import Line
from ._overdue import OVERDUE, PREEMPTED
from ._wires import GONE, POSTED, Wires

__all__ = ["Channel"]

_CLOSED: Final = (
    "this world is closed; expected calls before close() only. Close it when nothing is left to be done together."
)
_LAST_SECONDS: Final = 1.0  # for what is still to be sent at the end
_TELL_SECONDS: Final = 5.0  # for a failure to leave this process

Message = tuple[Any, ...]
Answer = queue.SimpleQueue[Any]


class Channel:
    """One process's end. Its thread alone touches sockets; it never waits for another thread, and runs no user code.

    Args:
        rank: this process.
        size: how many there are.
        grace: seconds that the main thread has to close this after another process has failed.
        on_failure: is told what another process has failed with.
    """

    def __init__(self, rank: int, size: int, grace: float, on_failure: Callable[[str], None] | None = None) -> None:
        self._rank, self._grace, self._deadlines, self._on_failure = rank, grace, Deadlines(), on_failure
        self.failure: str | None = None
        """What a process has failed with; None as long as none has."""
        self.member = Member(lambda tick, wish: self._post(("wish", tick, wish)), self._explain)
        self._wires = Wires()
        self._hub = Hub(size, self._send_from_hub) if rank == 0 else None
        self._to_self: deque[Message] = deque()
        self._welcome: Answer = queue.SimpleQueue()
        self._calls: dict[tuple[str, int], Answer] = {}  # of the channel's thread
        self._over: str | None = None  # why nobody is to be waited for any more
        self._first = "process 0"
        self._closing: Answer | None = None
        self._is_closed = self._has_ended = self._has_first_parted = False
        self._turns: dict[str, threading.Lock] = {}
        self._numbers: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="parhelion-world", daemon=True)
        self._acts: dict[str, Callable[..., None]] = {
            "welcome": self._on_welcome,
            "call": self._on_call,
            "decided": self.member.decide,
            "given": self._on_answer,
            "refused": self._on_answer,
            "failed": self._fail,
            "bye": self._on_bye,
        }

    def start(self, end: Gate | Line, hello: Message, timeout: float) -> None:
        """Begin to talk, and return when all processes do.

        Raises:
            WorldError: one has not come in time.
        """
        if isinstance(end, Gate):
            self._wires.open(end)
        else:
            self._wires.attach(end, 0)
        os.register_at_fork(after_in_child=_forget_in_fork(weakref.ref(self)))
        self._thread.start()
        self._post(hello)
        try:
            trouble = self._welcome.get(timeout=timeout)
        except queue.Empty:
            missing = self._hub.missing if self._hub is not None else "some"
            trouble = (
                f"processes {missing} have not come within {timeout:g} s; expected all. See why they have not, or "
                "allow a longer timeout."
            )
            self.fail(trouble)
        if trouble is not None:
            self.close(0.0)
            raise WorldError(trouble)

    def gather(self, kind: str, value: Any, topic: str) -> list[Any]:
        """Give a value to a call of all processes, and return what it comes to here.

        Raises:
            WorldError: a process has failed, is gone or has parted; or another thread of this one is at that topic.
            Exception: whatever pickling raises.
        """
        if not topic:
            topic = "main" if threading.current_thread() is threading.main_thread() else "aside"
        payload = pickle.dumps(value, 5)
        answer: Answer = queue.SimpleQueue()
        with self._take_turn(topic, kind) as number:
            is_waiting = kind != GATHER_TO_FIRST or self._rank == 0
            self._post(("give", topic, number, kind, payload), answer if is_waiting else None)
            if self._has_ended or (self._over and not is_waiting):
                raise self._explain()
            found: Any = answer.get() if is_waiting else []
        if isinstance(found, str):
            raise WorldError(found)
        return [pickle.loads(each) for each in found]  # noqa: S301 - from this very program, in another process

    @contextmanager
    def _take_turn(self, topic: str, kind: str) -> Generator[int]:
        turn = self._turns.setdefault(topic, threading.Lock())
        if not turn.acquire(blocking=False):
            raise WorldError(
                f"{kind} is called while another thread of this process waits in a call of topic {topic!r}; expected "
                "one at a time. Give each thread that calls a topic of its own, the same in all processes."
            )
        try:
            number = self._numbers[topic] = self._numbers.get(topic, 0) + 1
            yield number
        finally:
            turn.release()

    @property
    def is_alone(self) -> bool:
        """Whether all others have parted from this process, or are gone; they need no other one than the first."""
        return self._hub is None or self._hub.is_alone

    def fail(self, text: str) -> None:
        """Tell all that this process is about to end, and why; return when it has been sent."""
        told: Answer = queue.SimpleQueue()
        self._post(("fail", text), told)
        if not self._has_ended:
            with contextlib.suppress(queue.Empty):
                told.get(timeout=_TELL_SECONDS)

    def close(self, timeout: float) -> None:
        """Part from the others; the first process waits for all of them, no longer than ``timeout`` seconds."""
        self._deadlines.cancel()
        if not self._is_closed and not self._has_ended:
            self._is_closed = True
            parted: Answer = queue.SimpleQueue()
            self._post(("bye",), parted)
            try:
                parted.get(timeout=timeout)
            except queue.Empty:
                self._post(("end",))
        if self._thread is not threading.current_thread():
            self._thread.join(_LAST_SECONDS + 1)

    def _post(self, message: Message, answer: Answer | None = None) -> None:
        self._wires.post((message, answer))

    def _explain(self) -> WorldError:
        return WorldError(self._over or _CLOSED)

    # From here on: the channel's thread.

    def _run(self) -> None:
        try:
            while not self._has_ended:
                for rank, item in self._wires.wait():
                    self._take(rank, item)
                while self._to_self:
                    self._receive(self._to_self.popleft())
        except BaseException:  # noqa: BLE001 - whoever waits for an answer would wait for ever
            self._fail(f"the thread that talks to the other processes failed:\n{traceback.format_exc()}")
        finally:
            self._end()

    def _end(self) -> None:
        self._over = self.failure or _CLOSED
        self._give_up(self._over)
        # Whoever posts after this sees that it has ended.
        self._has_ended = True
        deadline = time.monotonic() + _LAST_SECONDS
        while not self._wires.is_flushed() and time.monotonic() < deadline:
            for rank, item in self._wires.wait(0.05):
                if rank == POSTED:
                    self._refuse(*item)
        for item in self._wires.take_posted():
            self._refuse(*item)
        if self._closing is not None:
            self._closing.put(None)
        self._wires.close()

    def _refuse(self, _: Message, answer: Answer | None) -> None:
        if answer is not None:
            answer.put(self._over)

    def _take(self, rank: int, item: Any) -> None:
        if rank == POSTED:
            self._take_posted(*item)
        elif self._hub is None:
            if item is GONE:
                self._lose_hub()
            else:
                self._receive(item)
        elif item is GONE:
            self._hub.lost(rank)
        else:
            self._hub.receive(rank, item)

    def _take_posted(self, message: Message, answer: Answer | None) -> None:
        kind = message[0]
        if kind == "give" and self._over is not None:
            self._refuse(message, answer)
        elif kind == "give":
            if answer is not None:
                self._calls[message[1], message[2]] = answer
            self._up(message)
        elif kind == "bye":
            self._closing = answer
            self._up(("bye", self.member.tick))
        elif kind == "end":
            self._has_ended = True
        else:
            self._up(message)
        if kind == "fail" and answer is not None:
            self._accept_failure(f"this process has failed:\n{message[1]}")
            answer.put(None)

    def _up(self, message: Message) -> None:
        if self._hub is not None:
            self._hub.receive(0, message)
        elif not self._wires.send((0,), message) and message[0] == "bye":
            self._has_ended = True

    def _send_from_hub(self, ranks: Iterable[int], message: Message) -> None:
        self._wires.send((rank for rank in ranks if rank != 0), message)
        if 0 in ranks:
            self._to_self.append(message)

    def _receive(self, message: Message) -> None:
        kind, *content = message
        self._acts[kind](*content)

    def _on_welcome(self, first: str) -> None:
        self._first = first
        self._wires.shut()
        self._welcome.put(None)

    def _on_call(self, number: int) -> None:
        self._up(("here", number, self.member.call()))

    def _on_answer(self, topic: str, number: int, content: Any) -> None:
        answer = self._calls.pop((topic, number), None)
        if answer is not None:
            answer.put(content)

    def _on_bye(self) -> None:
        # The first process still answers: it waits for the others to part, too, if they do so in time.
        self._has_ended = self._closing is not None
        self._has_first_parted = True

    def _lose_hub(self) -> None:
        if self._closing is not None:
            self._has_ended = True
        elif self._has_first_parted:
            self._end_calls(
                f"{self._first} has closed its world; expected all processes to do so after the last thing that they "
                "do together."
            )
            self.member.expect_no_more()
        elif self._over is None:
            self._fail(describe_loss(self._first))

    def _fail(self, text: str) -> None:
        if self._accept_failure(text):
            if self._on_failure is not None:
                self._on_failure(text)
            reason = (
                f"process {self._rank} ends, as another one failed and this one has not ended within "
                f"{self._grace:g} s: {text}"
            )
            self._deadlines.set(self._grace, PREEMPTED if OVERDUE in text else 1, reason)

    def _accept_failure(self, text: str) -> bool:
        if self.failure is not None or self._is_closed:
            return False
        self.failure = text
        self._give_up(text)
        return True

    def _give_up(self, text: str) -> None:
        """Let nobody wait for other processes any more."""
        self._end_calls(text)
        self.member.give_up()

    def _end_calls(self, text: str) -> None:
        if self._over is None:
            self._over = text
        self._welcome.put(self._over)
        for answer in self._calls.values():
            answer.put(self._over)
        self._calls.clear()

    def forget(self) -> None:
        """Leave the connections to the process that this one was forked from."""
        self._has_ended = self._is_closed = True
        self._over = "this process was forked from one of a world and is none of it; expected calls from that one only."
        self.member.give_up()
        self._deadlines.forget()
        self._wires.forget()


def _forget_in_fork(channel: weakref.ref[Channel]) -> Callable[[], None]:
    def forget() -> None:
        if (found := channel()) is not None:
            found.forget()

    return forget
