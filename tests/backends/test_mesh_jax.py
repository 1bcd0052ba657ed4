"""Devices and meshes; several devices are in tests/support/eight_device_facts.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("parhelion_jax")

import jax
from jax.sharding import Mesh

from parhelion.errors import InvalidTypeError, InvalidValueError
from parhelion_jax.mesh import choose_devices, choose_mesh, data_axis, make_mesh
from support import jax_child

FACTS = Path(jax_child.__file__).with_name("eight_device_facts.py")
ONE = np.array(jax.devices("cpu")[:1])


@pytest.mark.processes
@pytest.mark.parametrize("fact", jax_child.list_facts(FACTS), ids=jax_child.words)
def test_with_eight_devices(fact) -> None:
    failure = jax_child.run_facts(FACTS, devices=8)[fact]
    assert failure is None, failure


def test_the_mesh_of_no_arguments_has_every_device_along_data() -> None:
    mesh = choose_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.devices.tolist() == jax.devices()
    assert choose_mesh(use_cpu=True).devices.tolist() == jax.devices("cpu")
    assert choose_mesh(gpus=(0,)).devices.tolist() == jax.devices()[:1]
    assert choose_devices(use_cpu=False) == jax.devices()


def test_a_mesh_of_one_s_own_is_taken_as_it_is() -> None:
    mesh = Mesh(ONE.reshape(1, 1), ("data", "model"))
    assert choose_mesh(mesh) is mesh
    assert data_axis(make_mesh(ONE)) == "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_cpu": True, "gpus": [0]}, r"use_cpu is True and gpus is \[0\]; expected one of them. Leave out use_cpu"),
        ({"gpus": []}, r"gpus is \[\]; expected ids of devices. Leave it out to train on all of them"),
        ({"gpus": [0, 0]}, r"gpus is \[0, 0\]; expected each id once"),
        (
            {"gpus": [99]},
            r"gpus has \[99\]; expected id.* since more devices are asked for than exist: jax finds \d+ of",
        ),
        ({"gpus": [0, -1]}, r"gpus has \[-1\]; expected id"),
        ({"mesh": make_mesh(ONE), "gpus": [0]}, r"gpus is \[0\] and a mesh is given; expected one of them"),
        ({"mesh": make_mesh(ONE), "use_cpu": False}, r"use_cpu is False and a mesh is given; expected one of them"),
        ({"mesh": Mesh(ONE.reshape(1, 1), ("x", "y"))}, r"mesh has the axes \['x', 'y'\]; expected one named 'data'"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments, message) -> None:
    with pytest.raises(InvalidValueError, match=message):
        choose_mesh(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_cpu": "yes"}, r"use_cpu is 'yes'; expected True, False or None"),
        ({"gpus": 0}, r"gpus is 0; expected a list of ids, such as \[0\], or None"),
        ({"gpus": "0"}, r"gpus is '0'; expected a list of ids"),
        ({"gpus": ["0"]}, r"gpus is \['0'\]; expected integers, such as \[0, 1\]"),
        ({"gpus": [True]}, r"gpus is \[True\]; expected integers"),
        ({"mesh": ONE}, r"mesh is array\(.*; expected a jax.sharding.Mesh, or None"),
        ({"mesh": make_mesh(ONE).abstract_mesh}, r"mesh is AbstractMesh\(.*; expected a jax.sharding.Mesh"),
    ],
)
def test_arguments_of_other_types_are_refused(arguments, message) -> None:
    with pytest.raises(InvalidTypeError, match=message):
        choose_mesh(**arguments)
