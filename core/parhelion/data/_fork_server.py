"""Where worker processes come from: a process that has loaded what they need and does nothing but fork.

It is a fresh interpreter with a single thread, so a fork of it is safe whatever threads the parent has, and it never
runs the user's script again. A worker that it forks is there in milliseconds, and shares the memory of the libraries.
It ends with the parent, however that ends, and a few seconds after its last worker.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from parhelion._bare import BOOT

from ._ring import make_file

__all__ = ["ForkedProcess", "close_server", "forget_server", "fork_worker", "serve", "start_server"]

_BOOT: Final = f"""import sys
sys.path[:] = {{path!r}}
{BOOT}
from parhelion.data._fork_server import serve
serve({{link}})
"""
_REPORT: Final = struct.Struct("<qq")  # process id, exit code
_RUNS: Final = 1 << 20  # in place of an exit code: it has just been forked
_MANY: Final = 1 << 16  # bytes of a message; those here are short
_LINGER: Final = 4.0  # seconds that it lives without a worker, for the next ones to begin at once
_STANDARD: Final = (1, 2)  # descriptors of output and errors


class ForkedProcess:
    """A worker process, as ``subprocess.Popen`` would show it.

    Attributes:
        returncode: its exit code, negative for a signal, once that is known.
    """

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._pid: int | None = None
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Its process id; waits until it has been forked.

        Raises:
            OSError: it never was.
        """
        while self._pid is None:
            if not self._server.collect(None):
                raise OSError("the process that starts workers has ended")
        return self._pid

    def poll(self) -> int | None:
        """Return its exit code if it has ended."""
        while self.returncode is None and self._server.collect(0.0):
            pass
        if self.returncode is None and self._server.is_gone:
            self._look()
        return self.returncode

    def _look(self) -> None:
        """Find out without the server whether it lives; how it ended nobody knows then."""
        try:
            os.kill(self._pid or 0, 0) if self._pid else None
        except ProcessLookupError:
            self._pid = None
        if self._pid is None:
            self.returncode = 1

    def wait(self, timeout: float) -> int:
        """Return its exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired("worker", timeout)
            if not self._server.collect(left) and self._server.is_gone:
                time.sleep(0.001)
        return self.returncode or 0

    def kill(self) -> None:
        """End it. The server keeps its process id from being used again until its end is known here."""
        if self.poll() is None:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def started(self, pid: int) -> None:
        """Note its process id."""
        self._pid = pid


class _Server:
    """The parent's side of the server.

    Raises:
        OSError: the system refuses to start it.
    """

    def __init__(self) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.RLock()
        self._starting: deque[ForkedProcess] = deque()
        self._running: dict[int, ForkedProcess] = {}
        self._loaded: set[str] = set()
        self._used = time.monotonic()
        self.is_gone = False
        try:
            code = _BOOT.format(path=_path(), link=there.fileno())
            self.process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [sys.executable, *_get_flags(), "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                # Ctrl-C is for the parent alone.
                process_group=0,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            there.close()

    def load(self, modules: Iterable[str]) -> None:
        """Let it import modules, for all workers that are forked from now on."""
        with self._lock:
            for name in modules:
                if name not in self._loaded:
                    self._loaded.add(name)
                    self._send({"load": name}, [])

    def fork(self, number: int, descriptors: list[int]) -> ForkedProcess:
        """Return a worker that is about to be forked.

        Raises:
            OSError: the server is gone.
        """
        process = ForkedProcess(self)
        with self._lock:
            may_end = not self._running and time.monotonic() - self._used > _LINGER / 2
            self._used = time.monotonic()
            standard = [each for each in _STANDARD if _is_open(each)]
            self._starting.append(process)
            try:
                self._send({"fork": number, "standard": standard}, [*descriptors, *standard])
            except OSError:
                self._starting.remove(process)
                raise
        if may_end:
            process.pid  # noqa: B018 - it may just be ending: wait and see
        return process

    def _send(self, message: dict[str, Any], descriptors: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        try:
            self._socket.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL)
        except OSError:
            self.is_gone = True
            raise

    def collect(self, timeout: float | None) -> bool:
        """Take in one report, waiting for it so long, or for ever; return whether there was one."""
        with self._lock:
            if self.is_gone or not select.select([self._socket], [], [], timeout)[0]:
                return False
            try:
                report = self._socket.recv(_REPORT.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True  # a garbage collection in between has closed another worker, and read it
            except OSError:
                report = b""
            if not report:
                self.is_gone = True
                return False
            self._used = time.monotonic()
            pid, code = _REPORT.unpack(report)
            if code == _RUNS:
                process = self._running[pid] = self._starting.popleft()
                process.started(pid)
            else:
                self._running.pop(pid).returncode = code
                with contextlib.suppress(OSError):
                    self._send({"bury": pid}, [])
            return True

    def close(self) -> None:
        """Let it end; its workers go on."""
        self.is_gone = True
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_LINGER)

    def forget(self) -> None:
        """Let go of the server, which belongs to the process that this one was forked from."""
        self.is_gone = True
        self._socket.close()
        self.process.returncode = 0


def _path() -> list[str]:
    return [entry for entry in sys.path if isinstance(entry, str)]  # pyright: ignore[reportUnnecessaryIsInstance]


def _get_directory() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""  # it has been removed, and no worker will find it


def _get_flags() -> list[str]:
    """Return this interpreter's options, such as -O; multiprocessing takes them from the same place."""
    flags: list[str] = vars(subprocess).get("_args_from_interpreter_flags", list)()
    return flags


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


_servers: list[_Server] = []  # one at most
_servers_lock = threading.Lock()


def fork_worker(number: int, link: int, task: int, board: int, *, load: Iterable[str]) -> ForkedProcess:
    """Return a worker process that is being started, by a server that is started for the first of them.

    It finds the working directory, the environment, ``sys.path`` and the standard output that this process has now.

    Args:
        number: from 0; its name in messages.
        link: descriptor of the socket to it.
        task: descriptor of what it is there for.
        board: descriptor of the place to note sample indices.
        load: modules that it needs and that take long to import.

    Raises:
        OSError: the system refuses.
    """
    setting = make_file(0)
    try:
        place = {"path": _path(), "cwd": _get_directory(), "environ": dict(os.environ)}
        with os.fdopen(os.dup(setting), "wb") as file:
            file.write(json.dumps(place).encode())
        with _servers_lock:
            if _servers:
                with contextlib.suppress(OSError):
                    return _ask(_servers[0], number, [link, task, board, setting], load)
                _servers.pop().close()
            _servers.append(_Server())
            _forget_at_fork()
            return _ask(_servers[0], number, [link, task, board, setting], load)
    finally:
        os.close(setting)


def start_server() -> None:
    """Start the server, if there is none: it takes its time to be ready, in which its caller may do something else.

    Raises:
        OSError: the system refuses.
    """
    with _servers_lock:
        if not _servers:
            _servers.append(_Server())
            _forget_at_fork()


def _ask(server: _Server, number: int, descriptors: list[int], load: Iterable[str]) -> ForkedProcess:
    if server.process.poll() is not None:
        raise OSError("the process that starts workers has ended")
    server.load(load)
    return server.fork(number, descriptors)


def forget_server() -> None:
    """Start a new server for the next worker, in a process that was forked from the one that has this server."""
    global _servers_lock  # noqa: PLW0603 - another thread may have held it at the fork
    _servers_lock = threading.Lock()
    while _servers:
        _servers.pop().forget()


@functools.cache
def _forget_at_fork() -> None:
    os.register_at_fork(after_in_child=forget_server)
    atexit.register(close_server)


def close_server() -> None:
    """Let the server end now; workers that it has forked go on."""
    while _servers:
        _servers.pop().close()


# -- in the server ----------------------------------------------------------------------------------------------------


def serve(link: int) -> None:
    """Be the server until the parent is gone.

    Args:
        link: descriptor of the socket to the parent.
    """
    # Imported before any fork, so that workers share it.
    from ._worker_process import main  # noqa: PLC0415 - it imports this file

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = socket.socket(fileno=link)
    sock.set_inheritable(False)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, _do_nothing)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    children: set[int] = set()
    while True:
        sources: list[Any] = [sock, woken]
        ready = select.select(sources, [], [], None if children else _LINGER)[0]
        if not ready:
            os._exit(0)
        if woken in ready:
            os.read(woken, _MANY)
        _report_ended(sock, children)
        if sock in ready:
            _obey(sock, children, main)


def _do_nothing(*_: object) -> None:
    pass


def _report_ended(sock: socket.socket, children: set[int]) -> None:
    for pid in [*children]:
        # It stays a zombie, and its number its own, until the parent knows.
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if end is not None:
            children.discard(pid)
            code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
            with contextlib.suppress(OSError):
                sock.send(_REPORT.pack(pid, code), socket.MSG_NOSIGNAL)


def _obey(sock: socket.socket, children: set[int], main: Callable[[int, int, int, int], None]) -> None:
    """Do what one message asks for."""
    try:
        raw, rights, _, _ = sock.recvmsg(_MANY, socket.CMSG_SPACE(16 * 4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        os._exit(0)  # the parent has ended with something unread
    if not raw:
        os._exit(0)
    message: dict[str, Any] = json.loads(raw)
    descriptors = array("i", b"".join(data for _, _, data in rights)).tolist()
    if "load" in message:
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            importlib.import_module(message["load"])
    elif "bury" in message:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(message["bury"], 0)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads: those of BLAS stop and start around a fork
            pid = os.fork()
        if pid == 0:
            _become_worker(sock, message, descriptors, main)
        children.add(pid)
        with contextlib.suppress(OSError):
            sock.send(_REPORT.pack(pid, _RUNS), socket.MSG_NOSIGNAL)
    for descriptor in descriptors:
        os.close(descriptor)


def _become_worker(
    sock: socket.socket, message: dict[str, Any], descriptors: list[int], main: Callable[[int, int, int, int], None]
) -> None:
    try:
        os.setpgid(0, 0)  # Ctrl-C is for the parent alone
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sock.close()
        link, task, board, setting = descriptors[:4]
        given = descriptors[4:]
        streams: dict[int, int] = dict(zip(message["standard"], given, strict=True))
        for target in _STANDARD:
            if target in streams:
                os.dup2(streams[target], target)
            elif _is_open(target):
                os.close(target)
        for descriptor in given:
            os.close(descriptor)
        with os.fdopen(setting, "rb") as file:
            file.seek(0)
            place = json.loads(file.read())
        sys.path[:] = place["path"]
        os.environ.clear()
        os.environ.update(place["environ"])
        with contextlib.suppress(OSError):  # it has been removed
            os.chdir(place["cwd"])
        # Else all workers would draw the same, where nothing keys it.
        np.random.seed()  # noqa: NPY002
        getattr(sys.modules.get("torch"), "seed", bool)()
        main(message["fork"], link, task, board)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException:  # noqa: BLE001 - a forked process must not go on with what the server does
        traceback.print_exc()
    os._exit(1)
