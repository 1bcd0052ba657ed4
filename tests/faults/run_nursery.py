"""A process that has imported a backend, and forks whole runs of it: a request a line, an answer a line.

    python -m faults.run_nursery torch

A request is JSON: ``setting``, the arguments of a life; and either nothing more, to wait for its end; or ``kill``, a
number of iterations and of seconds behind them after which it is killed; or ``until``, to leave it alone once it has
said that. ``end`` kills one that was left alone.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from parhelion.checkpoint import list_checkpoints
from support import whole_run


class Life:
    """A run in a fork, and what it has said."""

    def __init__(self, backend, setting):
        self.root, self.text = Path(setting["root"]), ""
        self.output, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(told, 1)
            os.dup2(told, 2)
            os._exit(self._live(backend, setting))
        os.close(told)

    @staticmethod
    def _live(backend, setting):
        try:
            if backend == "torch":
                importlib.import_module("torch").set_num_threads(1)
            return whole_run.live(backend, **setting)
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()

    def listen(self, has_said, seconds=60.0):
        """Read until something has been said, it has ended, or time is up."""
        deadline = time.monotonic() + seconds
        while not has_said(self.text) and (left := deadline - time.monotonic()) > 0:
            if select.select([self.output], [], [], left)[0]:
                part = os.read(self.output, 65536)
                if not part:
                    return
                self.text += part.decode(errors="replace")

    def kill(self):
        """Kill it, and return which checkpoints were there just before."""
        before = [info.iteration for info in list_checkpoints(self.root / "net")]
        os.kill(self.pid, signal.SIGKILL)
        return before

    def end(self):
        """Return how it has ended."""
        self.listen(lambda _: False)
        os.close(self.output)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def answer(backend, left, request):
    """Do what a request asks for."""
    if "end" in request:
        life = left.pop(request["end"])
        return {"before": life.kill(), "code": life.end(), "text": life.text}
    life, before = Life(backend, request["setting"]), []
    if "until" in request:
        life.listen(lambda text: request["until"] in text)
        left[life.pid] = life
        return {"pid": life.pid, "text": life.text}
    if "kill" in request:
        iterations, seconds = request["kill"]
        life.listen(lambda text: text.count("\ndid ") + text.startswith("did ") >= iterations)
        life.listen(lambda _: False, seconds)
        before = life.kill()
    return {"code": life.end(), "before": before, "text": life.text}


def main(backend):
    importlib.import_module(f"support.whole_run_{backend}")
    left = {}
    for line in sys.stdin:
        print(json.dumps(answer(backend, left, json.loads(line))), flush=True)


main(sys.argv[1])
