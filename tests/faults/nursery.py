"""A process that has imported everything, and forks lives: a request a line, an answer a line."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback

from faults.writer import live


def bear(request):
    """Run one life, kill it after ``delay`` seconds if there is one, and return how it ended."""
    delay = request.pop("delay", None)
    pid = os.fork()
    if pid == 0:
        try:
            live(**request)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


for line in sys.stdin:
    print(bear(json.loads(line)), flush=True)
