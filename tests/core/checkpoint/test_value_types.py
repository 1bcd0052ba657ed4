"""Only classes on the allow-list are rebuilt, by name and field by field."""

import dataclasses
import enum
import typing
from typing import Any

import attrs
import numpy as np
import pytest

from parhelion.checkpoint import (
    _types,
    flatten,
    get_trainer_safe_types_for_load,
    register_trainer_types_for_safe_load,
    register_value_type,
    unflatten,
    value_types,
)
from parhelion.errors import CheckpointMismatchError, DuplicateNameError, InvalidTypeError


@pytest.fixture(autouse=True)
def own_allow_list(monkeypatch):
    for table in ("_by_name", "_written_as", "_own"):
        monkeypatch.setattr(_types, table, dict(getattr(_types, table)))


def there_and_back(tree):
    return unflatten(*flatten(tree))


@attrs.frozen
class State:
    step: int
    _hidden: Any = None
    parts: list = attrs.field(factory=list)
    double: int = attrs.field(init=False)

    def __attrs_post_init__(self):
        object.__setattr__(self, "double", 2 * self.step)


@dataclasses.dataclass(slots=True)
class Settings:
    size: int
    names: tuple = ()
    note: str = dataclasses.field(default="", init=False)


class Point(typing.NamedTuple):
    x: int
    y: Any = 0


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


def test_registered_values_come_back_equal_and_of_their_type():
    for cls in (State, Settings, Point, Color, Level, Access):
        register_value_type(cls)
    settings = Settings(3, ("a",))
    settings.note = "set later"
    state = State(2, hidden={"deep": Point(1, Color.GREEN)}, parts=[settings])
    object.__setattr__(state, "double", 5)
    tree = {"state": state, "level": Level.LOW, "access": Access.READ | Access.WRITE, "red": Color.RED}
    back = there_and_back(tree)
    assert back == tree
    assert type(back["level"]) is Level
    assert back["red"] is Color.RED
    assert back["state"].double == 5
    assert type(back["state"]._hidden["deep"]) is Point
    assert back["state"].parts[0].note == "set later"


def test_arrays_inside_registered_values_are_found_and_named():
    register_value_type(State)
    _, arrays = flatten({"s": State(1, hidden=np.zeros(2))})
    assert list(arrays) == ["s._hidden"]


def test_a_type_that_is_not_on_the_list_is_not_rebuilt():
    skeleton, _ = flatten({"s": register_value_type(State)(1)})
    _types._by_name.clear()
    with pytest.raises(
        CheckpointMismatchError,
        match=r"^s is a value of type '.*State'; expected one on the allow-list \(which is empty",
    ):
        unflatten(skeleton, {})


def test_no_code_outside_the_list_can_be_named():
    for node in (
        ["value", "os.system", {"command": "true"}],
        ["enum", "os.system", "x"],
        ["flag", "os.system", 1],
    ):
        with pytest.raises(CheckpointMismatchError, match=r"'os\.system'; expected one on the allow-list"):
            unflatten({"x": node}, {})


def test_a_missing_field_takes_the_default_and_an_unknown_one_is_an_error():
    register_value_type(State, name="State")
    assert unflatten(["value", "State", {"step": 3}], {}) == State(3)
    with pytest.raises(CheckpointMismatchError, match=r"^s has the field 'extra'; expected one of step, _hidden"):
        unflatten({"s": ["value", "State", {"step": 3, "extra": 1}]}, {})


def test_fields_that_the_class_refuses_are_told_by_path():
    register_value_type(State, name="State")
    with pytest.raises(CheckpointMismatchError, match=r"^s has the fields parts; expected what State accepts \(Type"):
        unflatten({"s": ["value", "State", {"parts": ["list"]}]}, {})


def test_a_member_or_a_flag_that_is_gone_is_told_by_path():
    register_value_type(Color, name="Color")
    register_value_type(Access, name="Access")
    with pytest.raises(CheckpointMismatchError, match=r"^c is Color\.BLUE; expected one of RED, GREEN"):
        unflatten({"c": ["enum", "Color", "BLUE"]}, {})
    with pytest.raises(CheckpointMismatchError, match=r"^a is Access\(64\); expected a combination of its flags"):
        unflatten({"a": ["flag", "Access", 64]}, {})


def test_registering_works_as_a_decorator_is_idempotent_and_listed_in_order():
    count = len(value_types())

    @register_value_type
    @attrs.frozen
    class Inner:
        x: int = 0

    assert register_value_type(Inner) is Inner
    assert value_types()[count:] == [Inner]
    assert there_and_back(Inner(4)) == Inner(4)
    assert get_trainer_safe_types_for_load() == value_types()


def make_class():
    @attrs.frozen
    class Twice:
        x: int = 0

    return Twice


def test_a_class_defined_anew_takes_the_place_of_the_former():
    old, new = make_class(), make_class()
    register_value_type(old)
    skeleton, _ = flatten(old(1))
    register_value_type(new)
    assert unflatten(skeleton, {}) == new(1)
    assert old not in value_types()
    assert new in value_types()


def test_two_classes_cannot_share_a_name():
    register_value_type(State, name="thing")
    with pytest.raises(DuplicateNameError, match=r"value type name 'thing' is taken by .*State.*; names are unique"):
        register_value_type(Settings, name="thing")


def test_a_further_name_is_read_but_not_written():
    register_value_type(State, name="new.State")
    register_value_type(State, name="old.State")
    assert flatten(State(1))[0][1] == "new.State"
    assert unflatten(["value", "old.State", {"step": 1}], {}) == State(1)


@pytest.mark.parametrize("thing", [int, object, len, "State", tuple])
def test_only_classes_made_of_fields_or_members_can_be_registered(thing):
    with pytest.raises(InvalidTypeError, match=r"^value type is .*; expected an attrs class, a dataclass"):
        register_value_type(thing)


def test_a_script_and_its_spawned_processes_agree_on_names(monkeypatch):
    monkeypatch.setattr(State, "__module__", "__mp_main__")
    register_value_type(State)
    assert flatten(State(1))[0][1] == "__main__.State"


def test_the_packages_own_types_return_to_the_list_and_a_users_do_not(monkeypatch):
    monkeypatch.setattr(State, "__module__", "parhelion.somewhere")
    register_value_type(State)
    register_value_type(Settings)
    _types._by_name.clear()
    _types._written_as.clear()
    register_trainer_types_for_safe_load()
    assert State in get_trainer_safe_types_for_load()
    assert Settings not in get_trainer_safe_types_for_load()
