"""When things are due."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.training import Due, Plan, TrainingState, TrainingUnit

FREQUENCIES = st.none() | st.integers(1, 7)


def at(updates: int = 1, epoch: int = 0, offset: int = 4) -> TrainingState:
    return TrainingState(current_iteration=updates, global_iteration=updates, epoch=epoch, offset=offset)


def test_epochs_are_the_default_unit() -> None:
    assert Plan().unit is TrainingUnit.EPOCH
    assert Plan(unit="iteration").unit is TrainingUnit.ITERATION


def test_by_iteration_everything_counts_updates() -> None:
    plan = Plan(unit="iteration", total_steps=10, valid_frequency=2, chkpt_frequency=3, print_frequency=4)
    due = [plan.due(at(n)) for n in range(1, 13)]
    assert [n for n, each in enumerate(due, 1) if each.validate] == [2, 4, 6, 8, 10, 12]
    assert [n for n, each in enumerate(due, 1) if each.save] == [3, 6, 9, 12]
    assert [n for n, each in enumerate(due, 1) if each.log] == [4, 8, 12]


def test_by_epoch_validations_and_checkpoints_wait_for_the_end_of_an_epoch() -> None:
    plan = Plan(total_steps=4, valid_frequency=1, chkpt_frequency=2, print_frequency=3)
    assert plan.due(at(3, epoch=1, offset=8)) == Due(log=True)
    assert plan.due(at(5, epoch=1, offset=0)) == Due(validate=True)
    assert plan.due(at(10, epoch=2, offset=0)) == Due(validate=True, save=True)


def test_updates_between_checkpoints_count_beside_the_unit() -> None:
    plan = Plan(total_steps=4, chkpt_frequency=2, chkpt_every_iterations=3)
    assert plan.due(at(3, epoch=0, offset=8)).save
    assert plan.due(at(10, epoch=2, offset=0)).save
    assert not plan.due(at(5, epoch=1, offset=0)).save


def test_nothing_is_due_without_a_frequency() -> None:
    assert all(Plan(total_steps=3).due(at(n, epoch=n, offset=0)) == Due() for n in range(1, 20))


def test_a_run_ends_when_its_own_counter_reaches_the_total() -> None:
    assert Plan(total_steps=2).stop_reason(at(10, epoch=1, offset=16)) is None
    assert Plan(total_steps=2).stop_reason(at(10, epoch=2, offset=0)) == "finished"
    assert Plan(unit="iteration", total_steps=10).stop_reason(at(9)) is None
    assert Plan(unit="iteration", total_steps=10).stop_reason(at(10)) == "finished"
    assert Plan(total_steps=math.inf).stop_reason(at(10**9, epoch=10**6)) is None


def test_enough_validations_without_improvement_stop_a_run() -> None:
    plan = Plan(total_steps=9, valid_frequency=1, early_stop_cycles=2)
    assert plan.stop_reason(TrainingState(early_stop_count=1)) is None
    assert plan.stop_reason(TrainingState(early_stop_count=2)) == "early_stop"


@given(
    st.sampled_from(TrainingUnit),
    st.tuples(FREQUENCIES, FREQUENCIES, FREQUENCIES, FREQUENCIES),
    st.integers(1, 40),
    st.integers(0, 60),
)
def test_nothing_is_due_before_the_next_due_update(unit, frequencies, total, now) -> None:
    valid, chkpt, log, every = frequencies
    plan = Plan(
        unit=unit,
        total_steps=total,
        valid_frequency=valid,
        chkpt_frequency=chkpt,
        print_frequency=log,
        chkpt_every_iterations=every,
    )
    upcoming = plan.next_due(at(now))
    for updates in range(now + 1, now + 60):
        busy = plan.due(at(updates)) != Due() or (plan.stop_reason(at(updates)) is not None)
        if busy and updates >= now:
            assert upcoming <= updates
            break


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 1.5}, r"total_steps is 1.5; expected an integer >= 0, or math.inf"),
        ({"total_steps": True}, r"total_steps is True; expected an integer"),
        ({"total_steps": math.nan}, r"total_steps is nan; expected an integer"),
        ({"total_steps": -1}, r"total_steps is -1; expected an integer >= 0"),
        ({"valid_frequency": 0}, r"valid_frequency is 0; expected an integer >= 1 or None. None means never"),
        ({"chkpt_frequency": -2}, r"chkpt_frequency is -2; expected an integer >= 1"),
        ({"print_frequency": 0}, r"print_frequency is 0; expected an integer >= 1"),
        ({"chkpt_every_iterations": 0}, r"chkpt_every_iterations is 0; expected an integer >= 1"),
        ({"chkpt_every_seconds": 0}, r"chkpt_every_seconds is 0; expected a number > 0"),
        ({"accumulation_steps": 0}, r"accumulation_steps is 0; expected an integer >= 1"),
        ({"early_stop_cycles": -1}, r"early_stop_cycles is -1; expected an integer >= 0"),
        ({"early_stop_cycles": 2}, r"early_stop_cycles is 2 and valid_frequency is None"),
        ({"total_steps": math.inf, "early_stop_cycles": 0}, r"total_steps is inf and early_stop_cycles is 0"),
        ({"unit": "step"}, r"train_unit is 'step'; expected 'iteration' or 'epoch'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**arguments)


@pytest.mark.parametrize("name", ["valid_frequency", "accumulation_steps"])
def test_a_frequency_that_is_no_integer_is_refused(name) -> None:
    with pytest.raises(TypeError, match=rf"{name} is '3'; expected an integer >= 1"):
        Plan(**{name: "3"})
