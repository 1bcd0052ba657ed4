"""A value without a place in a checkpoint is named by its path, with what is allowed and a way out."""

import collections
import dataclasses
import decimal
import enum

import attrs
import numpy as np
import pytest

from parhelion.checkpoint import flatten, save_checkpoint
from parhelion.errors import UnsavableValueError

META = {"run_name": "r", "global_epoch": 1, "global_iteration": 1}


class Color(enum.Enum):
    RED = 1


@attrs.frozen
class Options:
    size: int


@dataclasses.dataclass
class Settings:
    size: int


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - the untyped kind must be told too


class MyList(list):
    pass


def function():
    pass


@pytest.mark.parametrize(
    ("value", "what", "way_out"),
    [
        (function, "a function", "Save its name"),
        (len, "a function", "Save its name"),
        (Options, "the class Options", "Save its name"),
        (Color.RED, "a value of the unregistered type Color", r"register_value_type\(Color\)"),
        (Options(1), "a value of the unregistered type Options", r"register_value_type\(Options\)"),
        (Settings(1), "a value of the unregistered type Settings", r"register_value_type\(Settings\)"),
        (Point(1, 2), "a value of the unregistered type Point", r"register_value_type\(Point\)"),
        (MyList(), "a MyList, a subclass of list", r"Save list\(value\)"),
        (collections.defaultdict(list), "a defaultdict, a subclass of dict", r"Save dict\(value\)"),
        (collections.Counter(), "a Counter, a subclass of dict", r"Save dict\(value\)"),
        (decimal.Decimal(1), r"a value of type decimal\.Decimal", "Save its plain parts"),
        (np.array([{}]), "an array of object", r"tolist\(\)"),
        (np.zeros(2, "i4,f4"), "a structured array of", "one array per field"),
        (np.zeros(2, "i4,f4")[0], "a NumPy scalar of", r"value\.item\(\)"),
        (np.zeros(2, "V4"), r"an array of \|V4", r"view\(np\.uint8\)"),
        (np.ma.masked_array([1]), "an array of the subclass MaskedArray", r"np\.array\(value\)"),
        (object(), r"a value of type builtins\.object", "adapter"),
    ],
)
def test_the_message_names_path_value_and_way_out(value, what, way_out):
    tree = {"model": {"history": [0, 1, 2, {"fn": value}]}}
    with pytest.raises(
        UnsavableValueError, match=rf"^model\.history\[3\]\.fn is {what}.*; expected a plain.*{way_out}"
    ):
        flatten(tree)


@pytest.mark.parametrize("key", [Color.RED, b"x", (1, b"x"), frozenset()])
def test_a_key_of_another_type_is_refused_by_path(key):
    with pytest.raises(UnsavableValueError, match=r"^a\.b has a key of type .*; expected str, int, float, bool"):
        flatten({"a": {"b": {key: 1}}})


def test_a_member_of_a_set_is_refused_by_path():
    with pytest.raises(UnsavableValueError, match=r"^a has a member of type bytes: b'x'; expected"):
        flatten({"a": {b"x"}})


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"k": x}, lambda x: (x,)])
def test_a_cycle_is_refused_by_path(wrap):
    outer = []
    outer.append(wrap(outer))
    with pytest.raises(UnsavableValueError, match=r"^a\[0\]\S+ is a container that holds itself; .*break the cycle"):
        flatten({"a": outer})


def test_a_bottomless_tree_is_refused():
    tree = []
    for _ in range(5000):
        tree = [tree]
    with pytest.raises(UnsavableValueError, match=r"is nested more than 100 levels deep; .*flatter"):
        flatten(tree)


def test_the_deepest_tree_that_flattens_can_be_saved_and_loaded(tmp_path):
    from parhelion.checkpoint import load_checkpoint

    tree = []
    for _ in range(100):
        tree = {(): tree}
    assert load_checkpoint(save_checkpoint(tmp_path, "c", tree, META)).tree == tree


def test_nothing_is_written_when_a_value_cannot_be_saved(tmp_path):
    save_checkpoint(tmp_path, "one", {"a": 1}, META)
    before = sorted(tmp_path.rglob("*"))
    for name in ("one", "two"):
        with pytest.raises(UnsavableValueError):
            save_checkpoint(tmp_path, name, {"w": np.zeros(100), "z": function}, META)
    assert sorted(tmp_path.rglob("*")) == before
