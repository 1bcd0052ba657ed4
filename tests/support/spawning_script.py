"""A user's script that starts its own processes, without a guard around its last lines: ``spawning_script.py CASE``."""

import multiprocessing
import os
import signal
import sys
import time

from parhelion.errors import WorldError
from parhelion.processes import SharedQueue, spawn

FACTOR = 10


class Point:
    def __init__(self, x):
        self.x = x

    def scaled(self):
        return Point(self.x * FACTOR)


class OwnError(Exception):
    pass


def rank():
    return int(os.environ["RANK"])


def work(queue, other, point):
    queue.put(("rank", rank()))
    queue.put(bytes(200_000))
    queue.put(Point(rank()))
    other.put(rank())
    return point.scaled(), [os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")], sys.argv[1]


def case_work():
    queue, other = SharedQueue(), multiprocessing.get_context("spawn").Queue()
    queue.put("mine")
    found = spawn(work, [queue, other, Point(4)], 2)
    assert all(type(each[0]) is Point and each[0].x == 40 for each in found)
    assert [each[1:] for each in found] == [([str(r), "2", "127.0.0.1"], "work") for r in (0, 1)], found
    assert queue.qsize() == 7
    items = [queue.get(timeout=10) for _ in range(7)]
    assert queue.empty()
    assert items[0] == "mine"
    assert sorted(item for item in items if type(item) is tuple) == [("rank", 0), ("rank", 1)]
    assert sorted(item.x for item in items if type(item) is Point) == [0, 1]
    assert sorted([other.get(timeout=10), other.get(timeout=10)]) == [0, 1]
    queue.close()


def fail():
    if rank() == 1:
        raise OwnError("of rank 1")
    try:
        time.sleep(60)
    finally:
        print("terminated")


def case_fail():
    try:
        spawn(fail, [], 2, grace=0.1)
    except WorldError as error:
        print("caught:", error, flush=True)
        print("cause:", type(error.__cause__) is OwnError, flush=True)


def consequence():
    """The one that fails first is not the first to end."""
    if rank() == 0:
        time.sleep(0.3)
        raise OwnError("of rank 0")
    raise WorldError("process 0 failed")


def case_consequence():
    try:
        spawn(consequence, [], 2)
    except WorldError as error:
        print("caught:", str(error).splitlines()[0], repr(error.__cause__), flush=True)


def end(statuses):
    status = statuses[rank()]
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


def case_end():
    for statuses in ([0, 3], [-9, 0], [0, 75], [0, 0]):
        try:
            print("returned:", spawn(end, [statuses], 2, grace=1), flush=True)
        except WorldError as error:
            print("caught:", error, flush=True)


def signals():
    got = []
    signal.signal(signal.SIGTERM, lambda *_: got.append("SIGTERM"))
    print("ready", os.getpid(), flush=True)
    while not got:
        time.sleep(0.005)
    return got


def case_signals():
    print("returned:", spawn(signals, [], 2), flush=True)


def deaf():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: print("got", flush=True))
    print("ready", os.getpid(), flush=True)
    while True:
        time.sleep(0.01)


def case_deaf():
    try:
        spawn(deaf, [], 2)
    except KeyboardInterrupt:
        print("interrupted", flush=True)


def case_unpicklable():
    try:
        spawn(lambda: (x for x in "abc"), [], 1)
    except WorldError as error:
        print("caught:", str(error).splitlines()[-1])


globals()[f"case_{sys.argv[1]}"]()
