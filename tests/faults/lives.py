"""A run of many lives, and what is counted of it."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys

from parhelion.checkpoint import list_checkpoints, load_newest

from .writer import KEPT, Training

__all__ = ["Lives", "Nursery"]

_STEPS = 40


class Nursery:
    """The process that forks the lives, and the digests of a run that is never disturbed."""

    def __init__(self):
        self._oracle = Training()
        self._digests = [self._oracle.digest()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip

    def bear(self, **request):
        """Run one life and return its exit code; the negative number of the signal that ended it."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has died"
        return int(answer)

    def digest(self, step):
        """Return the digest that the undisturbed run has after a step."""
        while len(self._digests) <= step:
            self._oracle.step()
            self._digests.append(self._oracle.digest())
        return self._digests[step]

    def close(self):
        self._process.kill()
        self._process.communicate()


class Lives:
    """One run folder, and the lives that train there one after the other."""

    def __init__(self, nursery, root, **mode):
        self._nursery, self._mode = nursery, mode
        self.root, self._log, self._read = root / "run", root / "log", 0
        self.root.mkdir()
        self._committed = 0
        self.tally = collections.Counter()

    def kill_at(self, point, nth):
        """Start a life that dies at a point; fail if it does not."""
        code = self._bear(point=point, nth=nth, steps=_STEPS)
        assert code == -signal.SIGKILL, f"the life ended with {code} and never came to {point!r} for the {nth}. time"
        self.tally["kills"] += 1

    def kill_after(self, delay):
        """Start a life and kill it some seconds later."""
        code = self._bear(delay=delay, steps=100_000)
        assert code == -signal.SIGKILL, f"the life ended with {code}"
        self.tally["kills"] += 1

    def end(self):
        """Let a last life do two steps undisturbed; check what it leaves behind."""
        assert self._bear(steps=2) == 0
        left = [path for path in self.root.iterdir() if path.name != "last.json"]
        kept = 1 if self._mode.get("is_replacing") else KEPT
        self.tally["leftovers"] += abs(len(left) - kept)
        self.tally["lost"] += kept - len(list_checkpoints(self.root))
        for folder in left:
            self.tally["leftovers"] += abs(len(list(folder.iterdir())) - 2)
        self._compare(load_newest(self.root).tree)

    def _compare(self, tree):
        training = Training()
        training.load(tree)
        self.tally["wrong"] += training.digest() != self._nursery.digest(training.step_count)

    def _bear(self, **request):
        code = self._nursery.bear(root=str(self.root), log=str(self._log), **self._mode, **request)
        for line in self._new_lines():
            word, *rest = line.split()
            if word == "left":
                self.tally["leftovers"] += len(rest)
            elif word == "resumed":
                self.tally["resumes"] += 1
                step, digest = int(rest[0]), rest[1]
                self.tally["lost"] += step < self._committed
                self.tally["wrong"] += digest != self._nursery.digest(step)
            elif word == "committed":
                self._committed = int(rest[0])
        return code

    def _new_lines(self):
        with self._log.open() as stream:
            stream.seek(self._read)
            lines = stream.read().splitlines()
            self._read = stream.tell()
        return lines
