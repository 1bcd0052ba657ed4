"""jax's backend passes the contract suite."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")
jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from parhelion.testing import (  # noqa: E402
    ArraysContract,
    LoaderContract,
    PlacementContract,
    RandomnessContract,
    ResumeContract,
    TrainerContract,
    WorldContract,
)
from parhelion_jax.arrays import Arrays  # noqa: E402
from parhelion_jax.data import loader_for  # noqa: E402
from parhelion_jax.mesh import make_mesh  # noqa: E402
from parhelion_jax.placement import Placement  # noqa: E402
from parhelion_jax.randomness import Randomness  # noqa: E402
from parhelion_jax.world import discover_world  # noqa: E402
from support import jax_case  # noqa: E402


class TestPlacement(PlacementContract):
    def make_placement(self):
        return Placement(make_mesh(jax.devices("cpu")[:1]))

    def make_scalar(self, number):
        return jnp.float32(number)


class TestRandomness(RandomnessContract):
    def make_randomness(self):
        return Randomness()


class TestWorld(WorldContract):
    def make_world(self):
        return discover_world()


class TestArrays(ArraysContract):
    # Those that are there without jax_enable_x64.
    dtypes = (
        *("bool", "uint8", "uint16", "uint32", "int8", "int16", "int32"),
        *("float16", "float32", "complex64"),
    )

    def make_arrays(self):
        return Arrays()

    def make_array(self, values):
        return jnp.asarray(values)

    def special_arrays(self):
        bits = np.arange(24, dtype=np.uint8).reshape(2, 12)
        names = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
        return {name: jnp.asarray(bits.view(np.dtype(getattr(jnp, name)))) for name in names}


class TestLoader(LoaderContract):
    def make_loader(self, dataset, split, params):
        return loader_for(dataset, split, params)


class TestTrainer(TrainerContract):
    case = jax_case


class TestResume(ResumeContract):
    case = jax_case
