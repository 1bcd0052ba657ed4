"""Values between two prints."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parhelion.errors import InvalidValueError, NonFiniteLossError
from parhelion.training import Window
from support.plain import Here
from support.threads import in_all

FLOATS = st.floats(-1e9, 1e9)


def test_each_reduction() -> None:
    window = Window(Here())
    for value in (1.0, 2.0, 6.0):
        window.log("mean", value)
        window.log("sum", value, "sum")
        window.log("last", value, "last")
    assert window.flush() == {"mean": 3.0, "sum": 9.0, "last": 6.0}
    assert window.flush() == {}


def test_a_step_may_return_nothing_a_scalar_or_a_mapping() -> None:
    window = Window(Here())
    window.add(None)
    window.add(2.0)
    window.add({"loss": 4.0, "accuracy": 0.5})
    assert window.flush() == {"loss": 3.0, "accuracy": 0.5}


@pytest.mark.parametrize("outcome", ["loss", (1.0, 2.0), [1.0]])
def test_another_outcome_is_refused(outcome) -> None:
    with pytest.raises(TypeError, match=r"a step returned .*; expected None, a scalar loss, or a mapping"):
        Window(Here()).add(outcome)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reduce of 'x' is 'max'; expected 'mean', 'sum' or 'last'"):
        Window(Here()).log("x", 1.0, "max")


def test_weights_make_a_mean_over_records() -> None:
    window = Window(Here())
    window.weight = 4
    window.add(1.0)
    window.weight = 1
    window.add(6.0)
    assert window.flush() == {"loss": 2.0}


@given(st.lists(FLOATS, min_size=1, max_size=40), st.sets(st.integers(0, 40)))
def test_reading_early_and_saving_change_no_bit(values, breaks) -> None:
    whole, parts = Window(Here()), Window(Here())
    for place, value in enumerate(values):
        if place in breaks:
            state = parts.state_dict()
            parts = Window(Here())
            parts.load_state_dict(state)
        for window in (whole, parts):
            window.log("mean", value)
            window.log("sum", value, "sum")
            window.log("last", value, "last")
    assert whole.flush() == parts.flush()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_guard_names_the_first_bad_iteration(bad) -> None:
    window = Window(Here())
    for iteration, value in enumerate([1.0, 2.0, bad, bad], 1):
        window.iteration = iteration
        window.add(value)
    with pytest.raises(NonFiniteLossError, match=rf"loss is {bad} at iteration 3; expected a finite number"):
        window.fold()


def test_the_guard_lets_other_values_be_nan_and_can_be_turned_off() -> None:
    window = Window(Here())
    window.log("accuracy", math.nan)
    assert math.isnan(window.flush()["accuracy"])
    off = Window(Here(), guard=False)
    off.add(math.nan)
    assert math.isnan(off.flush()["loss"])


def test_the_guard_looks_at_the_latest_after_a_thousand_values() -> None:
    window = Window(Here())
    window.add(math.nan)
    for _ in range(998):
        window.add(1.0)
    with pytest.raises(NonFiniteLossError):
        window.add(1.0)


# -- over ranks: each is a thread ------------------------------------------------------------------------------------

ENTRIES = st.tuples(st.integers(0, 7), st.floats(-1e12, 1e12), st.integers(1, 1000))


def log_all(window: Window, entries: list[tuple[int, float, int]]) -> None:
    for _, value, weight in entries:
        window.weight = weight
        window.log("mean", value)
        window.log("sum", value, "sum")


@given(st.lists(ENTRIES, min_size=1, max_size=40), st.integers(2, 8))
@settings(deadline=None)
def test_a_row_is_the_same_to_the_bit_however_its_values_were_split_over_ranks(entries, ranks) -> None:
    def row_of(world):
        window = Window(Here(), world=world)
        log_all(window, [entry for entry in entries if entry[0] % ranks == world.rank])
        return window.flush()

    alone = Window(Here())
    log_all(alone, entries)
    row = alone.flush()
    assert in_all(row_of, ranks) == [row] * ranks
    assert row["sum"] == float(sum(Fraction(value) for _, value, _ in entries))


def test_of_last_values_the_first_rank_that_has_one_says_it() -> None:
    def row_of(world):
        window = Window(Here(), world=world)
        if world.rank > 0:
            window.log("last", world.rank, "last")
            window.log("last", 10 * world.rank, "last")
        return window.flush()

    assert in_all(row_of) == [{"last": 10}] * 3


def test_ranks_that_reduce_a_value_differently_all_hear_of_it() -> None:
    def row_of(world):
        window = Window(Here(), world=world)
        window.log("x", 1.0, "sum" if world.rank else "mean")
        return window.flush()

    for error in in_all(row_of):
        assert isinstance(error, InvalidValueError)
        assert str(error).startswith("reduce of 'x' is 'sum' in one process and 'mean' in another; expected the same")


def begin(world):
    """A window of a rank that has logged something."""
    window = Window(Here(), world=world)
    window.log("mean", 0.1 * (world.rank + 1))
    window.log("sum", world.rank, "sum")
    window.log("last", world.rank, "last")
    return window


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_state_goes_on_on_any_number_of_ranks(after) -> None:
    saved = in_all(lambda world: begin(world).state_dict(), 3)
    assert saved[0] == saved[1] == saved[2]
    assert saved[0].keys() == {"0", "1", "2"}
    rows = in_all(lambda world: begin(world).flush(), 3)

    def go_on(world):
        window = Window(Here(), world=world)
        window.load_state_dict(saved[0])
        return window.state_dict(), window.flush()

    states, resumed = zip(*in_all(go_on, after), strict=True)
    assert list(resumed) == [rows[0]] * after
    if after == 3:
        assert list(states) == saved
    else:
        assert all(state == {} for rank, state in states[0].items() if rank != "0")


def test_where_ranks_compute_as_one_each_has_what_all_had() -> None:
    saved = in_all(lambda world: begin(world).state_dict(), 3)[0]
    rows = in_all(lambda world: begin(world).flush(), 3)
    window = Window(Here())
    window.load_state_dict(saved)
    assert window.state_dict().keys() == {"0"}
    assert window.flush() == rows[0]


def test_a_state_of_one_list_for_each_name_is_still_read() -> None:
    window = Window(Here())
    window.load_state_dict({"loss": ["mean", 6.0, 2], "count": ["sum", 3.0, 1], "rate": ["last", 0.5, 1]})
    window.log("loss", 3.0)
    assert window.flush() == {"loss": 3.0, "count": 3.0, "rate": 0.5}


def test_a_step_of_weight_0_is_not_taken() -> None:
    window = Window(Here())
    window.log("x", 1.0, "sum")
    window.weight = 0
    window.log("x", 5.0, "sum")
    window.log("y", math.nan)
    assert window.flush() == {"x": 1.0}
