"""Where a process is killed: named points, recognized from outside by what is done to which file."""

from __future__ import annotations

import builtins
import io
import os
import signal
from pathlib import Path
from typing import NamedTuple

__all__ = ["POINTS", "REPLACING", "SWEEPING", "Trap"]


class Act(NamedTuple):
    """One thing that is done to a file: before it is done, after it, or when half of it is."""

    kind: str
    moment: str
    path: str
    target: str = ""
    size: int = 0

    @property
    def name(self):
        return self.path.rpartition("/")[2]

    @property
    def is_arrays(self):
        return self.name.startswith("arrays-")

    @property
    def is_manifest(self):
        return "manifest.json" in self.name

    def is_(self, kind, moment):
        return (self.kind, self.moment) == (kind, moment)


def _commits(act, moment):
    return act.is_("rename", moment) and "-saving-" in act.name and not act.target.endswith(".json")


def _records(act, moment):
    return act.is_("rename", moment) and act.target.endswith("/last.json")


def _deletes(act, kind, moment):
    return act.is_(kind, moment) and "-deleting-" in act.path


POINTS = {
    "before data": lambda act: act.is_("open", "before") and act.is_arrays,
    "half-way through an array": lambda act: act.is_("write", "half") and act.is_arrays and act.size > 100_000,
    "before the fsync of the arrays": lambda act: act.is_("fsync", "before") and act.is_arrays,
    "after the fsync of the arrays": lambda act: act.is_("fsync", "after") and act.is_arrays,
    "half-way through the manifest": lambda act: act.is_("write", "half") and act.is_manifest,
    "before the fsync of the manifest": lambda act: act.is_("fsync", "before") and act.is_manifest,
    "after all fsyncs, before the rename": lambda act: _commits(act, "before"),
    "after the rename, before it is made to last": lambda act: _commits(act, "after"),
    "between the rename and `last`": lambda act: act.is_("open", "before") and "-saving-" in act.name,
    "before `last` is replaced": lambda act: _records(act, "before"),
    "after `last` is replaced": lambda act: _records(act, "after"),
    "before an old one leaves its name": lambda act: act.is_("rename", "before") and "-deleting-" in act.target,
    "after an old one has left its name": lambda act: act.is_("rename", "after") and "-deleting-" in act.target,
    "half-way through the deletion of an old one": lambda act: _deletes(act, "unlink", "after"),
    "before the folder of an old one goes": lambda act: _deletes(act, "rmdir", "before"),
}

REPLACING = {
    "half-way through an array that replaces": POINTS["half-way through an array"],
    "between the files that replace": lambda act: act.is_("rename", "after") and act.is_arrays,
    "before the switch": lambda act: act.is_("rename", "before") and act.is_manifest,
    "after the switch": lambda act: act.is_("rename", "after") and act.is_manifest,
    "before the arrays that were replaced go": lambda act: act.is_("unlink", "before") and act.is_arrays,
}

SWEEPING = {
    "while leftovers are swept": lambda act: act.is_("unlink", "after") and "-saving-" in act.path,
    "before a leftover's folder goes": lambda act: act.is_("rmdir", "before") and "-saving-" in act.path,
}


class Trap:
    """Kills this process when it reaches a point for the n-th time."""

    def __init__(self, point, nth):
        self._is_there = {**POINTS, **REPLACING, **SWEEPING}[point]
        self._left = nth
        self._open, self._write = io.open, os.write

    def set(self):
        """Wrap what Python's modules, pathlib and shutil among them, call to change files."""
        for name, kind in [("rename", "rename"), ("replace", "rename")]:
            setattr(os, name, self._around(getattr(os, name), kind, lambda path, to, **_: (str(path), str(to))))
        for name, kind in [("unlink", "unlink"), ("remove", "unlink"), ("rmdir", "rmdir"), ("mkdir", "mkdir")]:
            setattr(os, name, self._around(getattr(os, name), kind, _named))
        os.fsync = self._around(os.fsync, "fsync", lambda descriptor: (_opened(descriptor), ""))
        os.write = self._write_half
        io.open = builtins.open = self._open_watched

    def reach(self, *act):
        """Die here if this is the point."""
        if self.is_due(*act):
            self.spring()

    def is_due(self, *act):
        """Tell whether this is the point, for the n-th time."""
        if not self._is_there(Act(*act)):
            return False
        self._left -= 1
        return self._left == 0

    def spring(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, function, kind, describe):
        def wrapped(*arguments, **options):
            path, target = describe(*arguments, **options)
            self.reach(kind, "before", path, target)
            result = function(*arguments, **options)
            self.reach(kind, "after", path, target)
            return result

        return wrapped

    def _write_half(self, descriptor, data):
        if self.is_due("write", "half", _opened(descriptor), "", len(data)):
            self._write(descriptor, memoryview(data)[: len(data) // 2])
            self.spring()
        return self._write(descriptor, data)

    def _open_watched(self, file, mode="r", *arguments, **options):
        if isinstance(file, int) or not set(mode) & set("wxa+"):
            return self._open(file, mode, *arguments, **options)
        self.reach("open", "before", os.fspath(file))
        return _Watched(self._open(file, mode, *arguments, **options), self, os.fspath(file))


class _Watched:
    """A file whose writes can be stopped half-way."""

    def __init__(self, file, trap, path):
        self._file, self._trap, self._path = file, trap, path

    def write(self, data):
        size = len(data)
        if self._trap.is_due("write", "half", self._path, "", size):
            self._file.write(data[: size // 2])
            self._file.flush()
            self._trap.spring()
        return self._file.write(data)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


def _opened(descriptor):
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def _named(path, *_, dir_fd=None, **__):
    # shutil deletes by names relative to an open folder.
    return (os.fspath(path) if dir_fd is None else f"{_opened(dir_fd)}/{path}"), ""
