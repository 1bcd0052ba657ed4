"""Attributes that a run changes: which are kept, and how they come back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.checkpoint import flatten, unflatten
from parhelion.errors import CheckpointMismatchError
from parhelion.training import Attributes, put_attributes
from parhelion.training._attributes import mark_array, put_array


class Thing:
    pass


def watch(thing: Any) -> Attributes:
    return Attributes(lambda: {"it": thing}, mark_array)


def given_back(state: Any, thing: Any) -> Any:
    put_attributes({"it": thing}, state, put_array)
    return thing


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
    | st.floats(width=32).map(np.float32) | st.integers(-128, 127).map(np.int8)
)  # fmt: skip


@given(st.dictionaries(st.sampled_from("abcd"), SCALARS), st.dictionaries(st.sampled_from("abcd"), SCALARS))
def test_numbers_and_strings_come_back_exactly_and_only_if_they_changed(before, after) -> None:
    thing, twin = Thing(), Thing()
    vars(thing).update(before)
    vars(twin).update(before)
    watched = watch(thing)
    vars(thing).update(after)
    skeleton, arrays = flatten(watched.changed())
    given_back(unflatten(skeleton, arrays), twin)
    assert list(map(repr, sorted(vars(twin).items(), key=repr))) == list(
        map(repr, sorted(vars(thing).items(), key=repr))
    )
    assert all(type(vars(twin)[name]) is type(value) for name, value in vars(thing).items())
    changed = watched.changed().get("it", {})
    assert set(changed) <= set(after)
    assert all(repr(before.get(name, "absent")) != repr(after[name]) for name in changed)


def test_what_did_not_change_is_what_the_code_says() -> None:
    thing = Thing()
    thing.rate, thing.nan, thing.zero = 0.1, math.nan, 0.0
    assert watch(thing).changed() == {}
    watched = watch(thing)
    thing.zero = -0.0
    assert set(watched.changed()["it"]) == {"zero"}


def test_an_array_is_kept_whether_it_was_changed_in_place_or_replaced() -> None:
    def make() -> Any:
        thing = Thing()
        thing.inside, thing.shared = np.zeros(3), np.zeros(3)
        thing.alias = thing.shared
        return thing

    thing, twin = make(), make()
    watched = watch(thing)
    thing.inside += 1
    thing.shared = thing.shared + 2
    state = watched.changed()
    assert {name: is_same for name, (is_same, _) in state["it"].items()} == {"inside": True, "shared": False}
    held = twin.inside
    given_back(state, twin)
    assert held.tolist() == [1, 1, 1]  # what holds on to the array sees it
    assert (twin.shared.tolist(), twin.alias.tolist()) == ([2, 2, 2], [0, 0, 0])


def test_containers_are_kept_with_an_array_in_them_and_else_not() -> None:
    thing = Thing()
    watched = watch(thing)
    thing.state = (np.ones(2), {"deep": [np.zeros(1), 3]})
    thing.diary = [1.0, 2.0]
    thing.odd = [np.ones(1), object()]
    thing.keys = {object(): np.ones(1)}
    thing.function = len
    thing.dates = np.array(["2024-01-01"], "M8[D]")
    assert set(watched.changed()["it"]) == {"state"}
    twin = given_back(watched.changed(), Thing())
    assert type(twin.state) is tuple
    assert twin.state[1]["deep"][1] == 3


def test_attributes_of_something_that_is_gone_are_refused_unless_that_is_allowed() -> None:
    state = {"it": {}, "gone": {"x": (False, 3)}}
    with pytest.raises(CheckpointMismatchError, match=r"attributes of 'gone' and this one has no such part; expected"):
        put_attributes({"it": Thing()}, state, put_array)
    put_attributes({"it": Thing()}, state, put_array, strict=False)
