"""torch's backend passes the contract suite."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import parhelion_torch as backend  # noqa: E402
from parhelion.testing import (  # noqa: E402
    ArraysContract,
    LoaderContract,
    PlacementContract,
    RandomnessContract,
    ResumeContract,
    TrainerContract,
    WorldContract,
)
from parhelion_torch.data import loader_for  # noqa: E402
from parhelion_torch.placement import Placement  # noqa: E402
from parhelion_torch.randomness import Randomness  # noqa: E402
from parhelion_torch.world import discover_world  # noqa: E402
from support import torch_case  # noqa: E402

CPU = torch.device("cpu")


class TestPlacement(PlacementContract):
    def make_placement(self):
        return Placement(CPU)

    def make_scalar(self, number):
        return torch.tensor(number)


class TestRandomness(RandomnessContract):
    def make_randomness(self):
        return Randomness(CPU)

    def draw(self):
        return [*super().draw(), float(torch.rand(())), float(torch.randn(()))]


class TestWorld(WorldContract):
    def make_world(self):
        return discover_world()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
class TestArrays(ArraysContract):
    dtypes = (*ArraysContract.dtypes, "uint16", "uint32", "uint64", "complex128")

    def make_arrays(self):
        return backend.Arrays()

    def make_array(self, values):
        return torch.from_numpy(np.array(values))

    def special_arrays(self):
        bits = torch.arange(24, dtype=torch.uint8).reshape(2, 12)
        return {
            str(dtype): bits.view(dtype)
            for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32)
        }


class TestLoader(LoaderContract):
    def make_loader(self, dataset, split, params):
        return loader_for(dataset, split, params)


class TestTrainer(TrainerContract):
    case = torch_case


class TestResume(ResumeContract):
    case = torch_case
