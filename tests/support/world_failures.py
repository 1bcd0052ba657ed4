"""One way each in which a world of several processes ends badly, or nearly so: ``python world_failures.py CASE``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback

from parhelion.errors import WorldError
from support.ranks import open_ranks, say, share

RANK = int(os.environ["TEST_RANK"])


def main(case) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("logged: %(levelname)s %(message)s"))
    logging.getLogger("parhelion").addHandler(handler)
    name, _, victim = case.replace("-", "_").partition("_")
    if victim.isdecimal():
        globals()[f"case_{name}"](int(victim))
    else:
        globals()[f"case_{case.replace('-', '_')}"]()


def tell(call, *arguments) -> None:
    try:
        call(*arguments)
    except WorldError as error:
        say(str(error))


def enter_for_ever(world) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        world.meeting.enter()
        time.sleep(0.001)


def bear(world) -> None:
    """Find out in a gather, in front of a unit, and in the property."""
    tell(world.gather, None)
    tell(enter_for_ever, world)
    say(world.failure)


def case_kill(victim) -> None:
    world = open_ranks()
    world.barrier()
    if victim == RANK:
        os.kill(os.getpid(), signal.SIGKILL)
    bear(world)
    world.close()


def case_raise(victim) -> None:
    world = open_ranks()
    world.barrier()
    if victim == RANK:
        fail(world)
    bear(world)
    world.close()


def fail(world) -> None:
    try:
        raise LookupError("the reason")  # noqa: TRY301 - it is to have a traceback
    except LookupError:
        world.fail(traceback.format_exc())
        tell(world.gather, None)
        sys.exit(1)


def case_stuck(victim) -> None:
    """The others wait for the victim as in a collective operation, which nothing interrupts."""
    world = open_ranks(grace=0.3)
    here, _there = socket.socketpair()
    world.barrier()
    if victim == RANK:
        fail(world)
    while True:
        here.recv(1)


def case_closed_in_time() -> None:
    world = open_ranks(grace=0.3)
    world.barrier()
    if RANK == 1:
        fail(world)
    tell(world.gather, None)
    world.close()
    time.sleep(0.6)  # what is tested is that nothing happens by then
    say("lived on")


def case_mismatch() -> None:
    world = open_ranks()
    tell(world.barrier) if RANK != 1 else tell(world.gather, None)
    world.close()


def case_parted() -> None:
    world = open_ranks()
    world.barrier()
    if RANK == 2:
        world.close()
        return
    tell(world.gather, None)
    say("the failure is", world.failure)
    world.close()


def case_late() -> None:
    world = open_ranks()
    world.barrier()
    begin = time.monotonic()
    if RANK == 2:
        time.sleep(0.5)  # what is tested is that the first waits this long
    world.close()
    if RANK == 0 and time.monotonic() - begin > 0.4:
        say("closed after the last")
    if RANK == 1 and time.monotonic() - begin < 0.4:
        say("closed at once")


def case_impatient() -> None:
    world = open_ranks()
    world.barrier()
    if RANK == 0:
        world.close(timeout=0.1)
        return
    tell(world.gather, None)
    tell(enter_for_ever, world)
    say("the failure is", world.failure)
    world.close()


def case_late_to_hear() -> None:
    world = open_ranks()
    world.barrier()
    if RANK == 0:
        world.meeting.ask("stop")
    for unit in range(1, 1000):
        heard = world.meeting.enter()
        if heard:
            say("heard", *heard, "in front of unit", unit)
            break
        time.sleep(0.001 if RANK == 0 else 0.3)  # what is tested is that the others come late
    world.close(timeout=0.01)


def case_missing() -> None:
    if RANK == 2:
        share(None)
        return
    tell(lambda: open_ranks(timeout=1.0))


def case_sizes() -> None:
    from parhelion.processes import open_world

    size = 4 if RANK == 1 else 3
    tell(lambda: open_world(RANK, RANK, size, share, host="127.0.0.1"))


def case_strangers() -> None:
    """Others connect first, say nothing or something else, or know another secret."""
    from parhelion.processes import open_world
    from parhelion.processes._gate import Invitation, knock

    strangers = []

    def share_late(value) -> list:
        found = share(value)
        if RANK != 0:
            invitation = found[0]
            for words in (b"", b"GET / HTTP/1.1\r\n\r\n" * 100, bytes(8) + b"x" * 72, b"\x48" + bytes(7) + bytes(72)):
                strangers.append(socket.create_connection(("127.0.0.1", invitation.port)))
                strangers[-1].sendall(words)
            false = Invitation(invitation.hosts, invitation.port, invitation.machine, bytes(32))
            tell(lambda: knock(false, RANK, 0.2))
        return found

    world = open_world(RANK, RANK, 3, share_late, host="127.0.0.1")
    assert world.gather(RANK) == [0, 1, 2]
    world.close()
    for stranger in strangers:
        stranger.close()


def case_deadline() -> None:
    world = open_ranks()
    signal.signal(signal.SIGTERM, lambda *_: world.leave_by(0.2, 75, "no checkpoint was written in 0.2 s"))
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(20)


case_deadline_alone = case_deadline


def case_deadline_met() -> None:
    world = open_ranks()
    world.leave_by(0.2, 75)
    world.stay()
    world.leave_by(0.2, 75)
    world.close()
    time.sleep(0.4)  # what is tested is that nothing happens by then
    say("went on")


if __name__ == "__main__":
    main(sys.argv[1])
