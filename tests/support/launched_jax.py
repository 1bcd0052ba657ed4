"""One of the processes of a launcher, which connects without arguments and leaves without a word; prints what it is."""

from __future__ import annotations

import json
import os
import signal

import parhelion_jax


def main() -> None:
    world = parhelion_jax.connect()
    facts = {"rank": world.rank, "local_rank": world.local_rank, "size": world.size}
    again = parhelion_jax.world.discover_world()
    same = again is world or world.size == 1
    # jax would keep the system from ending a process by it.
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    gathered = world.gather(os.getpid())
    print(json.dumps({**facts, "same": same, "default": default, "gathered": gathered, "pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    main()
