"""Processes that go on together; here each is a thread."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from parhelion.errors import InvalidValueError, WorldError
from parhelion.training import Trainer, TrainerOptions
from parhelion.training._together import act_in_turn, check_agreement, let_first_act
from support.plain import Alone, Data, Descent, parts
from support.threads import in_all


def fail_in(rank: int) -> Callable[[Any], Any]:
    def act(world: Any) -> int:
        if world.rank == rank:
            raise OSError("the disk is full")
        return world.rank

    return act


def assert_failed_in(rank: int, results: list[Any]) -> None:
    for each, error in enumerate(results):
        assert type(error) is (OSError if each == rank else WorldError)
        text = "the disk is full" if each == rank else f"process {rank} failed at saving (OSError: the disk is full); "
        assert str(error).startswith(text)


def test_all_act_and_the_first_before_the_others() -> None:
    order: list[int] = []

    def act(world: Any) -> int:
        return act_in_turn(world, lambda: order.append(world.rank) or world.rank, "saving")

    assert in_all(act) == [0, 1, 2]
    assert order[0] == 0
    assert in_all(act, 1) == [0]


@pytest.mark.parametrize("rank", [0, 2])
def test_what_fails_in_one_fails_in_all(rank) -> None:
    assert_failed_in(rank, in_all(lambda world: act_in_turn(world, lambda: fail_in(rank)(world), "saving")))


def test_the_first_acts_alone_and_the_others_hear_of_a_failure() -> None:
    acted: list[int] = []

    def act(world: Any) -> list[None]:
        return let_first_act(world, lambda: acted.append(world.rank), "saving")

    assert in_all(act) == [[None], [], []]
    assert acted == [0]
    assert_failed_in(0, in_all(lambda world: let_first_act(world, lambda: fail_in(0)(world), "saving")))


def test_facts_that_differ_are_named_with_both_values_everywhere() -> None:
    def check(world: Any) -> None:
        check_agreement(world, {"seed": 1, "total_steps": 7 + (world.rank == 2)})

    errors = in_all(check)
    message = "total_steps is 8 in process 2 and 7 in process 0; expected the same in every process"
    assert all(isinstance(each, InvalidValueError) and str(each).startswith(message) for each in errors)
    assert in_all(lambda world: check_agreement(world, {"seed": 1})) == [None] * 3


class Pair(Alone):
    """A world of two, of which the other does what this one does."""

    size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


@pytest.mark.parametrize("world", [Alone(), Pair()])
def test_one_of_several_does_not_stop_by_itself_at_a_signal(world) -> None:
    class Watchful(Descent):
        def train_step(self, batch: Any, state: Any) -> Any:
            seen.append(signal.getsignal(signal.SIGTERM))
            return super().train_step(batch, state)

    seen: list[Any] = []
    trainer = Trainer(TrainerOptions(total_steps=1, print_banner=False), parts(world=world))
    assert trainer.fit(Watchful(), Data(is_distributed=False)), trainer.error
    assert (seen[0] == signal.getsignal(signal.SIGTERM)) == (world.size == 2)


def test_checkpoints_by_the_clock_need_one_process() -> None:
    trainer = Trainer(TrainerOptions(total_steps=1, chkpt_every_seconds=9), parts(world=Pair()))
    with pytest.raises(InvalidValueError, match=r"chkpt_every_seconds is 9 and 2 processes train together, whose"):
        trainer.fit(Descent(), Data(is_distributed=False))
