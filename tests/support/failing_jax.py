"""One of two or three connected processes of jax, of which one fails.

    python failing_jax.py ADDRESS PROCESSES RANK VICTIM HOW OTHERS GRACE

HOW the victim fails: ``raise``, ``kill``, ``term`` (SIGTERM) or ``hang`` (it tells the others, and does not end). What
the OTHERS do: ``wait`` in a computation of all, which nothing can interrupt; ``gather`` in the world; or ``sleep``.
GRACE is in seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp

import parhelion_jax
from parhelion_jax import parting
from parhelion_jax.mesh import choose_mesh
from parhelion_jax.placement import Placement

FOR_EVER = 100.0


def fail(how: str, world: parhelion_jax.world.World) -> None:
    if how == "raise":
        raise ValueError("the reason")
    if how in {"kill", "term"}:
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)
        time.sleep(FOR_EVER)
    world.fail("ValueError: the reason")
    time.sleep(FOR_EVER)


def main(address: str, processes: str, rank: str, victim: str, how: str, others: str, grace: str) -> None:
    parting._GRACE = float(grace)
    world = parhelion_jax.connect(address, int(processes), int(rank))
    placement = Placement(choose_mesh())
    total = jax.jit(jnp.sum)
    assert float(total(placement.place([jnp.ones(4)])[0])) == 4 * world.size
    world.barrier()
    if rank == victim:
        fail(how, world)
    elif others == "wait":
        total(placement.place([jnp.ones(4)])[0]).block_until_ready()
    elif others == "gather":
        world.gather(rank)
    time.sleep(FOR_EVER)


if __name__ == "__main__":
    main(*sys.argv[1:])
