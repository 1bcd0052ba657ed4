"""Tensors in attributes: which are kept, how they are marked, where they come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import parhelion_torch as backend
from parhelion.checkpoint import flatten, unflatten
from parhelion_torch.attributes import OnDevice, mark_tensor, pack, unpack

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # meta stands for an accelerator


def test_a_mark_changes_with_the_content_and_with_the_object() -> None:
    x = torch.zeros(3)
    before = mark_tensor(x)
    assert mark_tensor(x) == before != mark_tensor(x.clone())
    x += 1
    assert mark_tensor(x) != before


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")  # said once per process
def test_what_a_checkpoint_cannot_hold_or_keeps_otherwise_has_no_mark() -> None:
    with torch.inference_mode():
        inference = torch.ones(2)
    assert mark_tensor(inference) is not None
    for other in (
        torch.ones(2).to_sparse(), torch.ones(2, device="meta"), nn.Parameter(torch.ones(2)),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "text", None,
    ):  # fmt: skip
        assert mark_tensor(other) is None


def test_tensors_go_back_to_where_they_were() -> None:
    value = {"host": torch.ones(2), "far": [torch.ones(2, device=ELSEWHERE), (3, "text")], "none": None}
    packed = pack(value)
    assert isinstance(packed["far"][0], OnDevice)
    assert packed["host"] is value["host"]
    saved = {**packed, "far": [OnDevice(torch.zeros(2)), (3, "text")]}  # as it is read back: on the host
    skeleton, arrays = flatten(saved, backend.Arrays())
    back = unpack(None, unflatten(skeleton, arrays, backend.Arrays()), ELSEWHERE)
    assert (back["host"].device, back["far"][0].device) == (CPU, ELSEWHERE)
    assert (back["far"][1], back["none"]) == ((3, "text"), None)


def test_a_tensor_that_is_there_is_filled_where_that_is_possible() -> None:
    here = torch.zeros(2)
    assert unpack(here, torch.ones(2), CPU) is here
    assert here.tolist() == [1, 1]
    for other in (torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(1).expand(2), 3, None):
        assert unpack(other, torch.ones(2), CPU) is not other
    trained = torch.zeros(2, requires_grad=True)
    assert unpack(trained, torch.ones(2), CPU) is trained
    assert trained.requires_grad


@pytest.mark.parametrize("kind", [list, dict])
def test_a_container_stays_the_one_it_is_and_what_is_trained_in_it_too(kind) -> None:
    trained, plain = torch.zeros(2, requires_grad=True), torch.zeros(2)
    here = [trained, plain] if kind is list else {0: trained, 1: plain}
    saved = [torch.ones(2), torch.ones(2), 5] if kind is list else {0: torch.ones(2), 1: torch.ones(2), 2: 5}
    assert unpack(here, saved, CPU) is here
    assert here[0] is trained
    assert here[1] is not plain  # another tensor may have taken its place
    assert (here[1].tolist(), plain.tolist(), here[2]) == ([1, 1], [0, 0], 5)
