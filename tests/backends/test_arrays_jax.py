"""jax arrays survive a checkpoint bit for bit, and those that cannot are refused by path."""

import os
import subprocess
import sys

import numpy as np
import pytest

from parhelion.checkpoint import HostArray, flatten, load_checkpoint, save_checkpoint, unflatten
from parhelion.errors import CheckpointMismatchError, UnsavableValueError

jax = pytest.importorskip("jax")
pytest.importorskip("parhelion_jax")

import jax.numpy as jnp  # noqa: E402 - skipped before it could fail

from parhelion_jax.arrays import _DTYPES, Arrays  # noqa: E402

META = {"run_name": "r", "global_epoch": 1, "global_iteration": 1}
NARROWED = {"int64", "uint64", "float64", "complex128"}  # without x64
PACKED = {f"{sign}int{bits}" for sign in ("", "u") for bits in (1, 2, 4)}
PACKED |= {"float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"}


def there_and_back(tmp_path, tree):
    return load_checkpoint(save_checkpoint(tmp_path, "c", tree, META, Arrays()), Arrays()).tree


def raw(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(raw(one), raw(other))


def random_bits(dtype, *shape):
    """Every bit pattern, NaN payloads among them."""
    high = 2 if dtype == np.bool_ else 256
    bits = np.random.default_rng(0).integers(0, high, (*shape, dtype.itemsize), np.uint8)
    return bits.view(dtype)[..., 0]


def run(code, **environment):
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_every_dtype_of_jax_is_either_saved_or_refused():
    scalars = [value for value in vars(jnp).values() if isinstance(value, type(jnp.float32))]
    assert {np.dtype(value).name for value in scalars} == set(_DTYPES) | (
        PACKED & {np.dtype(value).name for value in scalars}
    )


@pytest.mark.parametrize("name", sorted(set(_DTYPES) - NARROWED))
def test_every_dtype_comes_back_bit_for_bit(tmp_path, name):
    host = random_bits(_DTYPES[name], 4, 6)
    tree = {
        "plain": jnp.asarray(host),
        "scalar": jnp.asarray(host[1, 2]),
        "empty": jnp.zeros((0, 3), _DTYPES[name]),
        "transposed": jnp.asarray(host).T,
    }
    back = there_and_back(tmp_path, tree)
    for key, array in tree.items():
        assert isinstance(back[key], jax.Array)
        assert same(back[key], array), key
    assert np.array_equal(raw(back["plain"]), raw(host))


X64 = """
import numpy as np, jax, jax.numpy as jnp
from pathlib import Path
from parhelion.checkpoint import load_checkpoint, save_checkpoint
from parhelion_jax.arrays import Arrays

bits = np.random.default_rng(0).integers(0, 256, (2, 3, 16), np.uint8)
names = ["int64", "uint64", "float64", "complex128"]
tree = {name: jnp.asarray(bits.view(name)[..., 0]) for name in names}
tree["scalar"] = jnp.uint64(2**64 - 1)
assert {tree[name].dtype.name for name in names} == set(names)
path = save_checkpoint(Path("PATH"), "c", tree, {"run_name": "r", "global_epoch": 1, "global_iteration": 1}, Arrays())
back = load_checkpoint(path, Arrays()).tree
assert all(isinstance(value, jax.Array) for value in back.values())
assert all(back[key].dtype == value.dtype for key, value in tree.items())
assert all(np.asarray(back[key]).tobytes() == np.asarray(value).tobytes() for key, value in tree.items())
"""


def test_64_bit_arrays_come_back_as_jaxs_with_x64_and_exactly_as_numpys_without(tmp_path):
    code = X64.replace("PATH", str(tmp_path))
    run(code, JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu")
    back = load_checkpoint(tmp_path / "c", Arrays()).tree
    assert {type(value) for value in back.values()} == {np.ndarray}
    bits = np.random.default_rng(0).integers(0, 256, (2, 3, 16), np.uint8)
    for name in NARROWED:
        assert back[name].dtype == name
        assert back[name].tobytes() == np.ascontiguousarray(bits.view(name)[..., 0]).tobytes()
    assert back["scalar"].shape == ()
    assert int(back["scalar"]) == 2**64 - 1


SHARDED = """
import numpy as np, jax, jax.numpy as jnp
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from parhelion.checkpoint import load_checkpoint, save_checkpoint
from parhelion_jax.arrays import Arrays

assert jax.device_count() == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
whole = np.random.default_rng(0).standard_normal((8, 6)).astype(jnp.bfloat16)
tree = {str(spec): jax.device_put(whole, NamedSharding(mesh, spec))
        for spec in (P(), P("data"), P("data", "model"), P(("data", "model")), P(None, "model"))}
path = save_checkpoint(Path("PATH"), "c", tree, {"run_name": "r", "global_epoch": 1, "global_iteration": 1}, Arrays())
back = load_checkpoint(path, Arrays()).tree
assert len(tree) == 5
for value in back.values():
    assert value.dtype == jnp.bfloat16 and np.asarray(value).tobytes() == whole.tobytes()
    assert len(value.devices()) == 1 and not value.committed
"""


def test_arrays_sharded_over_devices_come_back_whole(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    run(SHARDED.replace("PATH", str(tmp_path)), XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def test_one_array_at_two_places_stays_one_and_equal_ones_stay_apart():
    one, other = jnp.arange(3.0), jnp.arange(3.0)
    skeleton, arrays = flatten({"a": one, "b": [one, other]}, Arrays())
    assert len(arrays) == 2
    back = unflatten(skeleton, arrays, Arrays())
    assert back["a"] is back["b"][0]
    assert back["a"] is not back["b"][1]
    assert Arrays().identity(np.ones(2)) is None


def test_what_comes_back_can_be_donated_and_shares_nothing_with_what_was_saved(tmp_path):
    array = jnp.arange(4.0)
    back = there_and_back(tmp_path, {"w": array})["w"]
    double = jax.jit(lambda value: value * 2, donate_argnums=0)
    assert double(back).tolist() == [0, 2, 4, 6]
    assert back.is_deleted()
    assert array.tolist() == [0, 1, 2, 3]


def test_a_snapshot_keeps_its_bytes_when_a_step_donates_what_it_was_made_of():
    array = jnp.arange(4.0) + 1
    (host,) = flatten([array], Arrays())[1].values()
    double = jax.jit(lambda value: value * 2, donate_argnums=0)
    for _ in range(3):
        array = double(array)
    assert host.data.view(np.float32).tolist() == [1, 2, 3, 4]


def deleted():
    array = jnp.ones(2)
    array.delete()
    return array


def donated():
    array = jnp.ones(2)
    jax.jit(lambda value: value + 1, donate_argnums=0)(array)
    return array


@pytest.mark.parametrize(
    ("make", "what", "way_out"),
    [
        (deleted, "an array that was donated to a computation or deleted", r"a copy from before \(jnp\.copy\)"),
        (donated, "an array that was donated to a computation or deleted", "Keep what the computation returned"),
        (lambda: jax.random.key(0), r"an array of random keys \(key<fry>\)", "wrap_key_data"),
        (lambda: jax.random.split(jax.random.key(0), 3), "an array of random keys", r"key_data\(key\)"),
    ],
)
def test_an_array_that_has_no_bytes_here_is_refused_by_path(make, what, way_out):
    with pytest.raises(UnsavableValueError, match=rf"^model\.w\[1\] is {what}.*; expected an array .*{way_out}"):
        flatten({"model": {"w": [0, make()]}}, Arrays())


@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4", "float4_e2m1fn"])
def test_packed_dtypes_are_refused_by_path(name):
    array = jnp.zeros(4, getattr(jnp, name))
    with pytest.raises(UnsavableValueError, match=rf"^w is an array of the packed dtype {name}; .* array\.astype"):
        flatten({"w": array}, Arrays())


def test_a_traced_value_is_refused_by_path():
    def save(value):
        flatten({"w": value}, Arrays())

    with pytest.raises(UnsavableValueError, match=r"^w is a traced value \(float32\); .*outside of jit"):
        jax.jit(save)(jnp.ones(2))


def test_without_the_adapter_the_message_names_it():
    with pytest.raises(UnsavableValueError, match=r"^w is a value of type jax\S*; .*the backend's adapter"):
        flatten({"w": jnp.ones(2)})


def test_without_an_adapter_arrays_come_back_as_host_values(tmp_path):
    tree = {"f": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    path = save_checkpoint(tmp_path, "c", tree, META, Arrays())
    back = load_checkpoint(path).tree
    assert isinstance(back["f"], np.ndarray)
    assert isinstance(back["b"], HostArray)
    again = load_checkpoint(save_checkpoint(tmp_path, "d", {"b": back["b"]}, META), Arrays()).tree
    assert same(again["b"], tree["b"])


def test_numpy_arrays_stay_numpy_beside_jax_arrays(tmp_path):
    back = there_and_back(tmp_path, {"n": np.arange(3.0), "j": jnp.arange(3.0)})
    assert type(back["n"]) is np.ndarray
    assert back["n"].dtype == np.float64
    assert isinstance(back["j"], jax.Array)


def test_a_dtype_that_this_jax_lacks_is_told():
    host = HostArray("float7_e4m2", (1,), np.zeros(1, np.uint8))
    with pytest.raises(CheckpointMismatchError, match=r"dtype is 'float7_e4m2'; expected one that jax .* has"):
        Arrays().decode(host)
    with pytest.raises(CheckpointMismatchError, match=r"^model\.w is an array of float7_e4m2 .*Use a newer jax"):
        unflatten({"model": {"w": ["array", "w"]}}, {"w": host}, Arrays())


def test_what_torch_wrote_opens_here(tmp_path):
    torch = pytest.importorskip("torch")
    adapter = pytest.importorskip("parhelion_torch.arrays").Arrays()
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tree = {
        "bf16": torch.randn(3, 2).to(torch.bfloat16),
        "f8": torch.randn(3, 2).to(torch.float8_e5m2),
        "steps": torch.tensor(2**40 + 1),
        "longs": torch.arange(6).reshape(2, 3).T,
        "mask": torch.tensor([True, False]),
        "images": images,
        "double": torch.full((2, 3, 4, 5), 1 / 3, dtype=torch.float64).to(memory_format=torch.channels_last),
    }
    path = save_checkpoint(tmp_path, "c", tree, META, adapter)
    back = load_checkpoint(path, Arrays()).tree
    for name in ("bf16", "f8", "mask", "images"):
        assert isinstance(back[name], jax.Array)
        assert back[name].dtype.name == str(tree[name].dtype).removeprefix("torch.")
        bits = tree[name].contiguous().view(torch.uint8).numpy().reshape(-1)
        assert np.array_equal(raw(back[name]), bits), name
    for name in ("steps", "longs", "double"):
        assert type(back[name]) is np.ndarray
        assert same(back[name], tree[name].contiguous().numpy()), name


def test_what_jax_wrote_opens_in_torch(tmp_path):
    torch = pytest.importorskip("torch")
    adapter = pytest.importorskip("parhelion_torch.arrays").Arrays()
    names = sorted({*_DTYPES} - NARROWED - {"float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"})
    tree = {name: jnp.asarray(random_bits(_DTYPES[name], 2, 3)) for name in names}
    path = save_checkpoint(tmp_path, "c", tree, META, Arrays())
    back = load_checkpoint(path, adapter).tree
    for name, tensor in back.items():
        assert str(tensor.dtype) == f"torch.{name}"
        assert tensor.shape == (2, 3)
        assert np.array_equal(tensor.view(torch.uint8).numpy().reshape(-1), raw(tree[name])), name
    again = load_checkpoint(save_checkpoint(tmp_path, "d", back, META, adapter), Arrays()).tree
    assert all(same(again[name], tree[name]) for name in names)
