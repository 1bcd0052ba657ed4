"""All processes hear a wish in front of the same unit, and none waits for ever, whatever order things happen in."""

from __future__ import annotations

import itertools
import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import WorldError
from parhelion.processes import LocalMeeting, _agreement
from parhelion.processes._agreement import Convener, Member
from support.schedules import Schedule


class Outcomes(deque):
    """A queue for threads that take turns."""

    def __init__(self, schedule) -> None:
        self._schedule = schedule

    put = deque.append

    def get(self):
        self._schedule.wait(lambda: len(self) > 0)
        return self.popleft()


class Processes:
    """Simulated ones, each with a thread that works and one that talks; messages take as long as they like.

    Each does units until it hears "stop". In some units all wait for each other, as in a collective operation.
    """

    def __init__(self, size, choose, meets) -> None:
        self.size, self.meets = size, meets
        self.schedule = Schedule(choose, _agreement.__file__)
        self.inboxes = [deque() for _ in range(size)]
        self.members = [Member(self._bring(rank), lambda: WorldError("over")) for rank in range(size)]
        self.heard = [[] for _ in range(size)]
        self.arrived = {}
        self.is_done, self.is_acting = [False] * size, [False] * size
        self.convener = Convener(size, self._tell)
        for rank, member in enumerate(self.members):
            member._outcomes = Outcomes(self.schedule)
            self.schedule.add(f"work {rank}", lambda rank=rank: self._work(rank))
            self.schedule.add(f"talk {rank}", lambda rank=rank: self._talk(rank))

    def ask(self, rank, wish) -> None:
        self.schedule.add(f"ask {rank} {wish}", lambda: self.members[rank].ask(wish))

    def run(self) -> list:
        self.schedule.run()
        assert all(each == self.heard[0] for each in self.heard), self.heard
        return self.heard[0]

    def _is_all_said(self) -> bool:
        return (
            not any(self.inboxes)
            and not any(self.is_acting)
            and not any(name.startswith("ask") for name in self.schedule.names)
        )

    def _bring(self, rank):
        return lambda tick, wish: self.inboxes[0].append(("wish", rank, tick, wish))

    def _tell(self, message) -> None:
        for inbox in self.inboxes:
            inbox.append(message)

    def _work(self, rank) -> None:
        for unit in itertools.count(1):
            if unit > 20:  # the others are slow, not dead
                self.schedule.wait(self._is_all_said)
            assert unit < 60, f"nothing was heard in {unit} units"
            wishes = self.members[rank].enter()
            if wishes:
                self.heard[rank].append((unit, wishes))
            if "stop" in wishes:
                break
            if self.meets(unit):
                self.arrived[unit] = self.arrived.get(unit, 0) + 1
                self.schedule.wait(lambda unit=unit: self.arrived[unit] == self.size)
            else:
                self.schedule.wait(lambda: True)
        self.is_done[rank] = True

    def _talk(self, rank) -> None:
        inbox = self.inboxes[rank]
        while True:
            self.schedule.wait(lambda: inbox or all(self.is_done))
            if not inbox:
                return
            self.is_acting[rank] = True
            self._act(rank, *inbox.popleft())
            self.is_acting[rank] = False

    def _act(self, rank, kind, *content) -> None:
        if kind == "wish":
            self.convener.wish(*content[1:])
        elif kind == "here":
            self.convener.here(*content)
        elif kind == "call":
            self.inboxes[0].append(("here", rank, content[0], self.members[rank].call()))
        else:
            self.members[rank].decide(*content)


def simulate(seed, size, *, wishes=("stop",), meets=lambda unit: True) -> list:
    rng = random.Random(seed)
    # Some threads run far ahead of others, other ones in other runs.
    weights = {}

    def choose(names):
        return rng.choices(names, [weights.setdefault(name, rng.choice([1, 1, 5, 50])) for name in names])[0]

    processes = Processes(size, choose, meets)
    for wish in wishes:
        processes.ask(rng.randrange(size), wish)
    return processes.run()


@pytest.mark.parametrize("size", [1, 2, 3])
@given(seed=st.integers(0, 2**32))
def test_all_stop_in_front_of_the_same_unit_in_whatever_order_things_happen(size, seed) -> None:
    heard = simulate(seed, size)
    assert [wishes for _, wishes in heard] == [("stop",)]


@given(seed=st.integers(0, 2**32), every=st.sampled_from([1, 2, 3, 7]))
def test_wishes_of_several_are_heard_by_all_alike(seed, every) -> None:
    heard = simulate(seed, 2, wishes=("save", "stop", "print"), meets=lambda unit: unit % every == 0)
    flat = [wish for _, wishes in heard for wish in wishes]
    assert len(flat) == len({*flat})
    assert "stop" in flat


def run_with_one_switch(order, place, to) -> int:
    """Let each go on until it has to wait, but for one switch; return how many moments there were."""
    moments = itertools.count()
    last = [None]

    def choose(names):
        if next(moments) == place:
            last[0] = names[to % len(names)]
        elif last[0] not in names:
            last[0] = min(names, key=lambda name: hash_of(name, order))
        return last[0]

    processes = Processes(2, choose, lambda unit: unit % 2 == 0)
    processes.ask(1, "stop")
    assert [wishes for _, wishes in processes.run()] == [("stop",)]
    return next(moments)


def hash_of(name, order) -> float:
    return random.Random(f"{order} {name}").random()


def test_a_switch_between_any_two_lines_changes_nothing() -> None:
    place = 0
    while min(run_with_one_switch(0, place, to) for to in range(3)) > place:
        place += 1
    assert place > 30


def run_one_member(switches) -> int:
    """Decide two rounds while units begin, with switches at some moments; return how many moments there were."""
    moments = itertools.count()
    running = ["talk"]

    def choose(names):
        if next(moments) in switches:
            running[0] = {"talk": "work", "work": "talk"}[running[0]]
        return running[0] if running[0] in names else names[0]

    schedule = Schedule(choose, _agreement.__file__)
    member = Member(lambda tick, wish: None, lambda: WorldError("over"))
    member._outcomes = Outcomes(schedule)
    heard, wanted = {}, {}

    def work() -> None:
        for unit in range(1, 9):
            heard.update(dict.fromkeys(member.enter(), unit))
            if unit == 4:
                schedule.wait(lambda: len(wanted) == 2)

    def talk() -> None:
        for wish in ("a", "b"):
            last = member.call()
            wanted[wish] = last + 1
            member.decide(last, (wish,))

    schedule.add("work", work)
    schedule.add("talk", talk)
    schedule.run()
    assert heard == wanted
    return next(moments)


def test_no_round_is_lost_wherever_two_threads_interrupt_each_other() -> None:
    count = run_one_member(())
    for first in range(count):
        for second in range(first + 1, count + 3):
            run_one_member((first, second))


def test_a_wish_that_is_brought_twice_before_it_is_heard_is_heard_once() -> None:
    told = []
    convener = Convener(2, told.append)
    convener.wish(3, "stop")
    convener.wish(2, "stop")
    convener.here(0, 1, 4)
    convener.here(1, 1, 3)
    convener.wish(4, "stop")  # by one that has not come to unit 5
    assert told == [("call", 1), ("decided", 4, ("stop",))]
    convener.wish(5, "stop")
    assert told[2:] == [("call", 2)]


def test_wishes_that_come_during_a_round_are_heard_with_it_or_make_the_next() -> None:
    told = []
    convener = Convener(2, told.append)
    convener.wish(1, "a")
    convener.here(0, 1, 1)
    convener.wish(1, "b")
    convener.here(1, 1, 1)
    convener.wish(1, "c")
    convener.here(0, 1, 9)  # late, of a round that is over
    assert told == [("call", 1), ("decided", 1, ("a", "b")), ("call", 2)]


def test_one_that_has_parted_is_not_waited_for() -> None:
    told = []
    convener = Convener(3, told.append)
    convener.part(2, 9)
    convener.wish(7, "stop")
    convener.here(0, 1, 7)
    convener.here(1, 1, 8)
    assert told == [("call", 1), ("decided", 9, ("stop",))]
    convener.wish(10, "save")
    convener.here(0, 2, 10)
    convener.part(1, 11)  # instead of an answer
    assert told[2:] == [("call", 2), ("decided", 11, ("save",))]


def test_rounds_that_end_at_one_unit_are_heard_together() -> None:
    member = Member(lambda tick, wish: None, lambda: WorldError("over"))
    assert [member.enter(), member.enter()] == [(), ()]
    assert member.call() == 2
    member.decide(3, ("a",))
    assert member.call() == 2
    member.decide(3, ("b", "a"))
    assert member.call() == 2
    member.decide(4, ("c",))
    assert [member.enter() for _ in range(4)] == [(), ("a", "b"), ("c",), ()]
    assert not member.is_called


def test_after_the_end_every_unit_raises() -> None:
    member = Member(lambda tick, wish: None, lambda: WorldError("process 2 is gone"))
    member.give_up()
    for _ in range(3):
        with pytest.raises(WorldError, match="process 2 is gone"):
            member.enter()


def test_what_is_decided_is_heard_before_the_end() -> None:
    member = Member(lambda tick, wish: None, lambda: WorldError("process 0 has closed its world"))
    member.enter()
    member.decide(member.call() + 1, ("stop",))
    member.expect_no_more()
    assert [member.enter(), member.enter()] == [(), ("stop",)]
    with pytest.raises(WorldError, match="process 0 has closed its world"):
        member.enter()


def test_a_round_that_is_never_decided_is_not_waited_for() -> None:
    member = Member(lambda tick, wish: None, lambda: WorldError("process 0 has closed its world"))
    member.call()
    member.expect_no_more()
    for _ in range(2):
        with pytest.raises(WorldError, match="process 0 has closed its world"):
            member.enter()


def test_one_process_hears_what_it_wishes_in_its_order_and_once() -> None:
    meeting = LocalMeeting()
    assert meeting.enter() == ()
    for wish in ("save", "stop", "save"):
        meeting.ask(wish)
    assert meeting.enter() == ("save", "stop")
    assert meeting.enter() == ()
