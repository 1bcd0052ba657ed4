"""Values between two prints."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import NonFiniteLossError
from parhelion.training import Window
from support.plain import Here

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
