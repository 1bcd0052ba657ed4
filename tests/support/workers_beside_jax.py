"""A program that trains with worker processes on both backends, each once jax has started its threads."""

from __future__ import annotations

import os

import numpy as np

from support import twins


def main() -> None:
    import jax

    # Threads of jax's own are there, and have had something to do.
    jax.jit(lambda x: x @ x)(np.ones((64, 64), np.float32)).block_until_ready()
    # A fork of a process with threads deadlocks now and then only, so there shall be none.
    forks: list[str] = []
    os.register_at_fork(before=lambda: forks.append(side))
    for side in ("torch", "jax", "torch"):
        losses = []
        for workers in (2, 0):
            trainer = twins.make_trainer(side, total_steps=2, print_frequency=1)
            assert trainer.fit(twins.make_model(side), twins.Data(num_workers=workers)), trainer.error
            losses.append([row["loss"] for row in trainer.history])
        assert len(losses[0]) == 2 * twins.NUM_BATCHES
        assert losses[0] == losses[1]
        assert not forks
        print(f"{side} is done", flush=True)


if __name__ == "__main__":
    main()
