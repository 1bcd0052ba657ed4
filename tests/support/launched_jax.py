"""One of the processes of a launcher, which connects without arguments and leaves without a word; prints what it is."""

from __future__ import annotations

import json
import os

import parhelion_jax


def main() -> None:
    world = parhelion_jax.connect()
    is_same = parhelion_jax.world.discover_world() is world
    gathered = world.gather(os.getpid())
    facts = {"rank": world.rank, "local_rank": world.local_rank, "size": world.size, "is_same": is_same}
    print(json.dumps({**facts, "gathered": gathered, "pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    main()
