"""Host batches to the device, and values back."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, ClassVar, NamedTuple

import attrs
import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from parhelion_torch.placement import Placement, move

CPU = torch.device("cpu")
ELSEWHERE = torch.device("meta")  # a second device that every machine has
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Pair(NamedTuple):
    x: Any
    y: Any


@attrs.frozen
class Frozen:
    x: Any
    name: str = "a"
    twice: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "twice", (self.x, self.x))


@dataclasses.dataclass(frozen=True)
class Record:
    x: Any
    seed: dataclasses.InitVar[int] = 0
    kind: ClassVar[str] = "record"
    note: str = dataclasses.field(default="b", init=False)


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any


class Named(dict):
    def names(self) -> list[str]:
        return list(self)


class Batch(list):
    def first(self) -> Any:
        return self[0]


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if attrs.has(type(value)) or dataclasses.is_dataclass(value):
        fields = attrs.fields(type(value)) if attrs.has(type(value)) else dataclasses.fields(value)
        value = [getattr(value, field.name) for field in fields]
    values = value.values() if isinstance(value, dict) else value
    return [each for part in values for each in tensors_of(part)] if isinstance(value, (dict, list, tuple)) else []


X = torch.arange(6.0).reshape(2, 3)
NESTED = {
    "dict": {"x": X, "deep": {"y": [X, (X, Pair(X, "text"))]}},
    "list": [X, "text", 3, None],
    "tuple": (X, [X]),
    "named tuple": Pair(X, {"y": X}),
    "attrs": Frozen(X),
    "dataclass": Record(X),
    "slots": Slotted([X]),
    "ordered": collections.OrderedDict(a=X, b="text"),
    "subclass": Named(x=X),
    "list subclass": Batch([X]),
    "default": collections.defaultdict(list, x=X),
}


@pytest.mark.parametrize("kind", NESTED)
def test_every_tensor_in_nested_containers_is_moved_and_their_kinds_stay(kind) -> None:
    batch = NESTED[kind]
    moved = Placement(ELSEWHERE).place(batch)
    assert type(moved) is type(batch)
    before, after = tensors_of(batch), tensors_of(moved)
    assert len(after) == len(before) >= 1
    assert all(each.device == ELSEWHERE for each in after)
    assert all(each.device == CPU for each in before)  # the batch itself is not changed
    if kind == "subclass":
        assert moved.names() == ["x"]
    if kind == "list subclass":
        assert moved.first() is moved[0]
    if kind == "default":
        assert moved["new"] == []
    if kind == "dataclass":
        assert (moved.note, moved.kind) == ("b", "record")
        assert set(vars(moved)) == {"x", "note"}  # what belongs to the class stays there


@pytest.mark.parametrize("kind", NESTED)
def test_what_is_where_it_should_be_is_not_copied(kind) -> None:
    batch = NESTED[kind]
    placed = Placement(CPU).place(batch)
    assert all(one is other for one, other in zip(tensors_of(batch), tensors_of(placed), strict=True))


def test_a_dictionary_of_tensors_in_place_is_handed_through() -> None:
    batch = {"x": X, "y": X}
    assert Placement(CPU).place(batch) is batch


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "?", "c8", ">f4", ">i8"])
def test_arrays_become_tensors(dtype) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    (tensor,) = Placement(CPU).place([array])
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype.newbyteorder("=")


def test_an_array_that_torch_can_share_is_shared_and_others_are_copied() -> None:
    array = np.zeros(3, np.float32)
    tensor = move(array, CPU)
    array[0] = 1
    assert tensor[0] == 1
    locked = np.broadcast_to(np.float32(2), (3,))
    assert move(locked, CPU).tolist() == [2, 2, 2]  # and torch does not warn
    assert move(np.arange(3.0)[::-1], CPU).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "value",
    ["text", 3, 2.5, None, True, b"x", np.array(["a"]), np.array([None, {}]), np.array("2024", "M8"), {1, 2}],
    ids=repr,
)
def test_what_has_no_tensor_is_left(value) -> None:
    assert Placement(CPU).place({"value": value})["value"] is value
    assert Placement(ELSEWHERE).place((value,))[0] is value


def test_what_can_move_moves_itself() -> None:
    class Encoding:
        def to(self, device: torch.device) -> Any:
            return ("moved to", device)

    assert Placement(ELSEWHERE).place({"text": Encoding()}) == {"text": ("moved to", ELSEWHERE)}
    packed = pack_sequence([torch.ones(2), torch.ones(1)])
    assert type(Placement(CPU).place(packed)) is type(packed)


def test_values_come_back_as_floats_whatever_their_dtype() -> None:
    placement = Placement(CPU)
    values = [
        torch.tensor(0.1), torch.tensor([0.2], dtype=torch.float64), torch.tensor(3), torch.tensor(True),
        torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.25, dtype=torch.float16), 7, 0.1, np.float32(0.3),
    ]  # fmt: skip
    host = placement.to_host([placement.hold(value) for value in values])
    assert host == [float(np.float32(0.1)), 0.2, 3.0, 1.0, 0.5, 0.25, 7.0, 0.1, float(np.float32(0.3))]
    assert all(type(each) is float for each in host)
    assert placement.to_host([]) == []


def test_a_held_value_keeps_no_graph() -> None:
    loss = (torch.ones(3, requires_grad=True) ** 2).sum()
    held = Placement(CPU).hold(loss)
    assert (type(held), held) == (float, 3.0)


@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(0), torch.tensor(1j), np.ones(2), "3.5", [1.0], None])
def test_what_is_no_scalar_is_refused(value) -> None:
    with pytest.raises(TypeError, match=r"it is .*; expected a number or a tensor with one"):
        Placement(CPU).hold(value)


@pytest.mark.gpu
@needs_cuda
def test_cuda_without_an_index_is_the_current_device() -> None:
    placement = Placement(torch.device("cuda"))
    x = torch.ones(2, device="cuda")
    assert placement.place([x])[0] is x
    assert placement.place({"x": torch.ones(2)})["x"].device == x.device


@pytest.mark.gpu
@needs_cuda
def test_a_packed_sequence_goes_to_the_gpu_with_its_sizes_on_the_host() -> None:
    packed = Placement(torch.device("cuda")).place([pack_sequence([torch.ones(2), torch.ones(1)])])[0]
    assert packed.data.is_cuda
    assert not packed.batch_sizes.is_cuda


@pytest.mark.gpu
@needs_cuda
def test_values_of_several_devices_come_back_with_one_copy_for_each(monkeypatch) -> None:
    placement, copies = Placement(torch.device("cuda")), []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self.device.type) or real(self))
    values = [torch.tensor(float(k), device="cuda" if k % 2 else "cpu") for k in range(10)]
    assert placement.to_host([placement.hold(value) for value in values]) == list(map(float, range(10)))
    assert sorted(copies) == ["cpu", "cuda"]
