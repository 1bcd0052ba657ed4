"""Units of work with a barrier in each, wishes at random moments from signals and threads, again and again.

    python meeting_rounds.py ROUNDS

Each process logs in front of which unit it hears what. The units of a round end when all have heard "stop".
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

from support.ranks import open_ranks, say


def main(rounds: int) -> None:
    world = open_ranks()
    rng = random.Random(os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: world.meeting.ask("stop"))
    everybody = world.gather(os.getpid())
    begun = 0
    for turn in range(rounds):
        who = turn % world.size
        if world.rank == who:
            # Any process is struck, at any moment, sometimes several.
            victims = rng.sample(everybody, rng.choice([1, 1, 2, world.size]))
            threading.Timer(rng.random() * 0.01, strike, [victims]).start()
        if rng.random() < 0.3:
            threading.Timer(rng.random() * 0.01, world.meeting.ask, ["save"]).start()
        heard = ()
        while "stop" not in heard:
            heard = world.meeting.enter()
            begun += 1
            if heard:
                say("heard", begun, *heard)
            if "stop" not in heard:
                work(world, rng, begun)
        world.barrier()
        # What came for this round must not be left for the next one.
        while any(world.gather(drain(world))):
            begun += 1
            say("late", begun)
        begun += 1
    world.close()
    say("done", begun)


def strike(victims) -> None:
    for pid in victims:
        os.kill(pid, signal.SIGTERM)


def drain(world) -> tuple[str, ...]:
    """Return what is heard in front of one more unit, some time later."""
    time.sleep(0.012)
    world.barrier()
    return world.meeting.enter()


def work(world, rng, begun) -> None:
    # Some units wait for the other processes, some do not; so one may be ahead by a few.
    if rng.random() < 0.5:
        time.sleep(rng.random() * 0.001)
    if begun % 4 == 0:
        world.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]))
