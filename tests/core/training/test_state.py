"""The training state and the units."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parhelion as ph
from parhelion.training import BatchSpan, TrainingState, TrainingUnit


def test_units_have_the_values_and_labels_of_the_reference() -> None:
    assert (TrainingUnit.ITERATION.value, TrainingUnit.EPOCH.value) == (0, 1)
    assert TrainingUnit.from_str("iteration") is TrainingUnit.ITERATION
    assert TrainingUnit.from_str("EPOCH") is TrainingUnit.EPOCH


@pytest.mark.parametrize("label", ["", "epochs", None, 3])
def test_another_label_is_refused(label) -> None:
    with pytest.raises(ValueError, match=r"train_unit is .*; expected 'iteration' or 'epoch'"):
        TrainingUnit.from_str(label)


def test_dict_holds_the_eight_counters() -> None:
    assert TrainingState(current_iteration=3, global_iteration=6).dict() == {
        "current_iteration": 3,
        "global_iteration": 6,
        "global_epoch": 0,
        "validation_cycles": 0,
        "dataset_iter": 0,
        "early_stop_count": 0,
        "average_iter_time": 0.0,
        "running_iter": 0,
    }


def test_a_state_cannot_be_changed_nor_grow() -> None:
    state = TrainingState()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        state.global_iteration = 1
    with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
        state.something = 1


def test_wall_clock_is_no_part_of_equality() -> None:
    assert TrainingState(average_iter_time=1.0) == TrainingState(average_iter_time=2.0)
    assert TrainingState(global_iteration=1) != TrainingState(global_iteration=2)


def test_the_first_batch_counts_as_iteration_one_of_epoch_one() -> None:
    state = TrainingState().after(BatchSpan(4, is_update=True, is_last=False, loss_weight=1.0), 0.5)
    assert (state.global_iteration, state.current_iteration, state.global_epoch) == (1, 1, 1)
    assert (state.dataset_iter, state.running_iter) == (1, 1)
    assert state.position == ph.Position(0, 4)


def test_after_the_last_batch_comes_the_start_of_the_next_epoch() -> None:
    last = BatchSpan(4, is_update=True, is_last=True, loss_weight=1.0)
    ended = TrainingState(global_epoch=1, epoch=0, offset=16, dataset_iter=4).after(last, 0.1)
    assert ended.position == ph.Position(1, 0)
    assert (ended.global_epoch, ended.dataset_iter) == (1, 5)
    begun = ended.after(BatchSpan(4, is_update=True, is_last=False, loss_weight=1.0), 0.1)
    assert (begun.global_epoch, begun.dataset_iter, begun.position) == (2, 1, ph.Position(1, 4))


def test_a_batch_inside_a_group_is_no_update() -> None:
    state = TrainingState().after(BatchSpan(4, is_update=False, is_last=False, loss_weight=0.5), 0.1)
    assert (state.global_iteration, state.current_iteration, state.is_update) == (1, 0, False)
    assert state.loss_weight == 0.5


def test_a_validation_resets_the_running_counter() -> None:
    state = TrainingState(running_iter=7, early_stop_count=1)
    assert state.after_validation(improved=True) == TrainingState(validation_cycles=1)
    assert state.after_validation(improved=False).early_stop_count == 2


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_the_average_time_is_the_mean_over_the_batches(seconds: list[float]) -> None:
    state = TrainingState()
    for each in seconds:
        state = state.after(BatchSpan(1, is_update=True, is_last=False, loss_weight=1.0), each)
    assert state.average_iter_time == pytest.approx(sum(seconds) / len(seconds), abs=1e-9)
