"""What a world of several processes does, one thing after the other; each process says what it found as JSON."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
import warnings

from parhelion.errors import WorldError
from support.ranks import open_ranks, say


def main() -> None:
    world = open_ranks()
    found = {
        "numbers": [world.rank, world.local_rank, world.size],
        "gathered": world.gather({"rank": world.rank, "text": "x" * world.rank}),
        "first": world.gather_to_first(world.rank),
        "large": gather_large(world),
        "barrier": pass_barrier(world),
        "threads": call_from_threads(world),
        "same topic": call_one_topic_twice(world),
        "topics": call_about_topics(world),
        "unpicklable": give_unpicklable(world),
        "interrupted": be_interrupted(world),
        "fork": fork(world),
        "failure": world.failure,
    }
    world.barrier()
    world.close()
    world.close()
    found["closed"] = [refusal(world.barrier), refusal(world.meeting.enter), world.meeting.ask("stop")]
    say(json.dumps(found))


def refusal(call, *arguments) -> str:
    try:
        call(*arguments)
    except WorldError as error:
        return str(error)
    return "none"


def gather_large(world) -> list[int]:
    # More than all buffers of the system, in both directions at once.
    return [len(each) for each in world.gather(bytes((world.rank + 1) * 20_000_000))]


def pass_barrier(world) -> bool:
    time.sleep(0.05 * world.rank)  # what is tested is that the others wait this long
    arrived = time.time()
    world.barrier()
    return time.time() >= max(world.gather(arrived))


def call_from_threads(world) -> list[list[str]]:
    """The main thread and another one call in another order in each process."""
    behind = []

    def work() -> None:
        for turn in range(20):
            behind.extend([world.gather(f"behind {turn}")])

    thread = threading.Thread(target=work)
    thread.start()
    before = [world.gather(f"before {turn}") for turn in range(20)]
    thread.join()
    both = (before, behind)
    return [sorted({*itertools.chain(*each)}) for each in both] + [[len({*values}) for values in each] for each in both]


def call_one_topic_twice(world) -> str:
    """A second thread at the same topic is refused, and the call that goes on is not disturbed."""
    texts = []
    thread = threading.Thread(target=lambda: texts.append(world.about("one").gather("behind")))
    ready = world.about("ready")
    if world.rank == 0:
        thread.start()
        while not world._channel._turns.get("one", threading.Lock()).locked():
            time.sleep(0.001)
        said = refusal(world.about("one").gather, "before")
        ready.barrier()
        thread.join()
        return f"{said} {texts}"
    ready.barrier()
    return str(world.about("one").gather("behind"))


def call_about_topics(world) -> list[list[str]]:
    order = ["a", "b"] if world.rank else ["b", "a"]
    found = {}
    threads = [
        threading.Thread(target=lambda topic=topic: found.update({topic: world.about(topic).gather(topic)}))
        for topic in order
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found["a"], found["b"]]


def give_unpicklable(world) -> str:
    """It is refused before anybody waits, and the next call is matched with the others' as if nothing had been."""
    try:
        world.gather(threading.Lock())
    except TypeError as error:
        text = str(error)
    world.barrier()
    return text


def be_interrupted(world) -> list:
    """A signal handler runs while the main thread waits for others, asks, and may raise."""
    times = []

    def handle(number, frame) -> None:
        times.append(time.time())
        world.meeting.ask(f"signal {world.rank}")
        if world.rank == 1:
            raise InterruptedError

    signal.signal(signal.SIGUSR1, handle)
    pids = world.gather(os.getpid())
    raised, given = False, 0.0
    if world.rank == 2:
        time.sleep(0.1)  # the others wait in the next call by then
        for pid in pids[:2]:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(0.2)
        given = time.time()
    try:
        world.gather(None)
    except InterruptedError:
        raised = True
    last = max(world.gather(given))
    heard = []
    world.barrier()
    while len(heard) < 2:
        heard += world.meeting.enter()
        time.sleep(0.001)
    world.barrier()
    return [raised, all(moment < last for moment in times), sorted(heard)]


def fork(world) -> list:
    """A fork takes no part, and its end ends nothing."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the threads
        child = os.fork()
    if child == 0:
        os.write(writing, refusal(world.gather, 1).encode())
        world.close()
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(reading, 10_000).decode()
    return [text, world.gather(world.rank)]


if __name__ == "__main__":
    main()
