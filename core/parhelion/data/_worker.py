"""A worker process as its parent sees it: asked for batches, waited for, and found out about when it fails."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import time
from typing import Final

from parhelion.errors import WorkerError

from ._link import NOTE, READY, UNUSABLE, Asked, ParentEnd, Result
from ._ring import make_file, map_file
from ._worker_process import TaskFile, start_process, write_indices

__all__ = ["Worker"]

_log = logging.getLogger("parhelion")
_GLANCE: Final = 0.5  # seconds between looks at a process that says nothing
_START: Final = 60.0  # seconds beyond the timeout that a worker may take to start
_END: Final = 5.0  # seconds that a killed process may take to end; one that waits for a dead disk never does


class Worker:
    """One worker process and what it has been asked for.

    Args:
        number: its place in the pool.
        task: what :func:`write_task` returned.
        timeout: seconds to wait for a result; 0 is for ever.

    Raises:
        OSError: the system refuses to start it.
    """

    def __init__(self, number: int, task: TaskFile, timeout: float) -> None:
        board = make_file(8)
        try:
            self._board = memoryview(map_file(board, 8)).cast("q")
            self._board[0] = -1
            self.process, sock = start_process(number, task, board)
        finally:
            os.close(board)
        self.link = ParentEnd(sock, self._wait)
        self._number, self._timeout = number, timeout
        self._asked: dict[tuple[int, int], Asked] = {}  # the first is the one that it is making
        self._is_ready = self._is_dead = False
        self._deadline: float | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def ask(self, asked: Asked) -> None:
        """Ask for a batch; this does not wait."""
        self._asked[asked.iteration, asked.number] = asked
        self.link.ask(asked)

    def cancel(self, iteration: int) -> None:
        """Ask no more for the batches of an iteration; those begun come nevertheless."""
        self.link.cancel(iteration)

    def receive(self) -> Result:
        """Return the next result.

        Raises:
            WorkerError: none comes.
        """
        self._deadline = None
        try:
            result = self.link.receive()
            while result.kind in (READY, NOTE):
                if result.kind == NOTE:
                    _log.warning(bytes(result.parts[0]).decode())
                self._is_ready, self._deadline = True, None
                result = self.link.receive()
        except (EOFError, OSError) as error:
            raise self._describe_death() from error
        if result.kind == UNUSABLE:
            raise WorkerError(bytes(result.parts[0]).decode())
        del self._asked[result.iteration, result.number]
        return result

    def _wait(self) -> None:
        now = time.monotonic()
        if self._deadline is None:
            allowance = self._timeout if self._is_ready or not self._timeout else self._timeout + _START
            self._deadline = now + allowance if allowance else float("inf")
        if now >= self._deadline:
            raise WorkerError(
                f"{self._write_name()} gave no batch for {self._timeout:g} s while it {self._write_doing()}; "
                f"expected one within the timeout. Raise timeout, or load with num_workers=0 to see where it hangs."
            )
        self.link.flush()
        self._poll.modify(self.link.socket, select.POLLIN | (select.POLLOUT if self.link.unsent else 0))
        if self._poll.poll(1000 * min(_GLANCE, self._deadline - now)):
            return
        if self._is_dead:
            raise EOFError  # and nothing was left to read
        # Who else has the socket, such as a process that the dataset forked, may keep it open.
        self._is_dead = self.process.poll() is not None

    def _describe_death(self) -> WorkerError:
        try:
            code = self.process.wait(1.0)
            how = _write_signal(-code) if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            how = "closed its connection"
        return WorkerError(
            f"{self._write_name()} {how} while it {self._write_doing()}; expected it to live as long as the loader "
            f"needs it. Load with num_workers=0 to see in this process what happens."
        )

    def _write_name(self) -> str:
        try:
            return f"worker process {self._number} (pid {self.process.pid})"
        except OSError:
            return f"worker process {self._number}, which was never forked,"

    def _write_doing(self) -> str:
        if not self._is_ready:
            return "was starting"
        index = self._board[0]
        every = [*self._asked.values()]
        asked = next((each for each in every if index in each.request.indices), every[0])
        where = f", at sample index {index}" if index in asked.request.indices else ""
        return (
            f"made the batch at place {asked.request.place} of epoch {asked.request.epoch} "
            f"({write_indices(asked)}){where}"
        )

    def kill(self) -> None:
        """End the process; nothing in it is worth waiting for."""
        self.process.kill()

    def close(self) -> None:
        """Let go of the killed process, the socket, and the memory."""
        self.link.close()
        self._board = memoryview(bytes(8)).cast("q")
        try:
            self.process.wait(_END)
        except subprocess.TimeoutExpired:
            self.forget()

    def forget(self) -> None:
        """Let go of the process, which is not this one's child or cannot be ended."""
        self.link.close()
        self.process.returncode = 0


def _write_signal(number: int) -> str:
    name = signal.Signals(number).name if number in {*signal.Signals} else str(number)
    return f"was killed by signal {name}" + (" (as when memory runs out)" if name == "SIGKILL" else "")
