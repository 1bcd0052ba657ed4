"""A training run on NumPy state that saves every step, and says in a log what it did."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xxhash

from parhelion.checkpoint import (
    Hold,
    Retention,
    Saver,
    checkpoint_name,
    flatten,
    load_newest,
    remove_leftovers,
    retain,
    write_checkpoint,
)

from .points import Trap

__all__ = ["KEPT", "Training", "live"]

KEPT = 2


class Training:
    """Some state, changed in place by every step in a way that only the state decides."""

    def __init__(self):
        rng = np.random.Generator(np.random.Philox(7))
        self.step_count = 0
        self.arrays = {
            "w": rng.random((200, 1500), dtype=np.float32),
            "m": np.asfortranarray(rng.random((100, 300))),
            "bits": rng.integers(0, 2, 60_001).astype(bool),
            "empty": np.zeros((0, 3)),
            "scale": np.array(1.0),
        }
        self.rng = rng

    def step(self):
        self.step_count += 1
        self.arrays["w"] += self.rng.random(self.arrays["w"].shape, dtype=np.float32) - self.arrays["m"][0, 0]
        self.arrays["m"] *= 0.999 + 1e-5 * self.arrays["w"][0, :300]
        self.arrays["bits"] ^= self.rng.integers(0, 2, self.arrays["bits"].size).astype(bool)
        self.arrays["scale"] *= 1.0001

    def tree(self):
        return {"step": self.step_count, "arrays": self.arrays, "rng": self.rng.bit_generator.state}

    def load(self, tree):
        self.step_count, self.arrays = tree["step"], tree["arrays"]
        self.rng.bit_generator.state = tree["rng"]

    def digest(self):
        """Return a hash of every bit of the state, its layout included."""
        state = xxhash.xxh3_128(repr(self.rng.bit_generator.state).encode())
        for name, array in self.arrays.items():
            strides = array.strides if array.size else ()
            state.update(f"{name} {array.dtype} {array.shape} {strides}".encode())
            state.update(array.tobytes())
        return state.hexdigest()


def live(root, log, *, point=None, nth=1, steps=0, is_behind=False, is_replacing=False):
    """Go on from the newest checkpoint for some steps; die on the way if there is a ``point``.

    Every line of the log is in the kernel's hands before anything else happens: a killed process loses none.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write = os.write

    def tell(*words):
        write(descriptor, (" ".join(map(str, words)) + "\n").encode())

    if point is not None:
        Trap(point, nth).set()
    remove_leftovers(root)
    tell("left", *(path.name for path in Path(root).glob(".*")))
    training, checkpoint = Training(), load_newest(root)
    if checkpoint is not None:
        training.load(checkpoint.tree)
    tell("resumed", training.step_count, training.digest())
    hold = Hold()
    with Saver(in_background=is_behind) as saver:
        for _ in range(steps):
            training.step()
            saver.check()
            saver.wait()
            saver.start(_save(Path(root), training, hold, tell, is_replacing))
    tell("ended")


def _save(root, training, hold, tell, is_replacing):
    """Return what writes the state as it is now."""
    count = training.step_count
    skeleton, arrays = flatten(training.tree())
    held = hold.copy(arrays)
    name = "only" if is_replacing else checkpoint_name("run", 1, count)
    meta = {"run_name": "run", "global_epoch": 1, "global_iteration": count}

    def write():
        write_checkpoint(root, name, skeleton, held, meta)
        tell("committed", count)
        retain(root, Retention(last=KEPT))

    return write
