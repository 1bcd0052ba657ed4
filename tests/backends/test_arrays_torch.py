"""torch tensors survive a checkpoint bit for bit, and those that cannot are refused by path."""

import copy
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch

from parhelion.checkpoint import HostArray, flatten, load_checkpoint, save_checkpoint, unflatten
from parhelion.errors import CheckpointMismatchError, UnsavableValueError
from parhelion_torch.arrays import _DTYPES, Arrays

META = {"run_name": "r", "global_epoch": 1, "global_iteration": 1}
# Dtypes that torch can name and make, but whose elements are parts of bytes or need a scale from elsewhere.
UNSAVABLE = {"bit", "bits16", "bits1x8", "bits2x4", "bits4x2", "bits8", "float4_e2m1fn_x2"}
UNSAVABLE |= {"qint32", "qint8", "quint2x4", "quint4x2", "quint8"}
UNSAVABLE |= {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}


def there_and_back(tmp_path, tree):
    return load_checkpoint(save_checkpoint(tmp_path, "c", tree, META, Arrays()), Arrays()).tree


def raw(tensor):
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)


def same(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and torch.equal(raw(one), raw(other))
    )


def random_bits(dtype, *shape):
    """Every bit pattern, NaN payloads among them."""
    generator = torch.Generator().manual_seed(0)
    size = dtype.itemsize
    high = 2 if dtype is torch.bool else 256
    return torch.randint(0, high, (*shape, size), generator=generator, dtype=torch.uint8).view(dtype).squeeze(-1)


def test_every_dtype_of_torch_is_either_saved_or_refused():
    dtypes = {str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype)}
    assert dtypes == set(_DTYPES) | (UNSAVABLE & dtypes)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", _DTYPES.values(), ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    tensor = random_bits(dtype, 4, 6)
    tree = {
        "plain": tensor,
        "scalar": tensor[1, 2].clone(),
        "empty": torch.empty(0, 3, dtype=dtype),
        "transposed": tensor.T,
        "strided": tensor[::2, 1::3],
        "expanded": tensor[:1].expand(3, 6),
    }
    back = there_and_back(tmp_path, tree)
    for name in ("plain", "scalar", "empty", "transposed"):
        assert same(back[name], tree[name]), name
    for name in ("strided", "expanded"):
        assert same(back[name], tree[name].contiguous()), name


def test_lazy_conjugates_and_negatives_are_resolved(tmp_path):
    tensor = torch.complex(torch.arange(3.0), torch.arange(1.0, 4.0))
    tree = {"z": tensor, "conj": tensor.conj(), "imag": tensor.conj().imag}
    assert tree["conj"].is_conj()
    assert tree["imag"].is_neg()
    back = there_and_back(tmp_path, tree)
    assert all(torch.equal(back[name], tree[name].resolve_conj().resolve_neg()) for name in tree)
    assert torch.equal(back["conj"], torch.tensor([0 - 1j, 1 - 2j, 2 - 3j]))


def test_channels_last_stays_channels_last(tmp_path):
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    ambiguous = torch.randn(8, 3, 1, 1).to(memory_format=torch.channels_last)
    back = there_and_back(tmp_path, {"w": tensor, "pointwise": ambiguous})
    assert same(back["w"], tensor)
    assert same(back["pointwise"], ambiguous)


def test_what_comes_back_is_a_plain_writable_tensor_of_its_own(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = there_and_back(tmp_path, {"p": parameter, "other": torch.ones(3)})
    assert type(back["p"]) is torch.Tensor
    assert not back["p"].requires_grad
    back["p"].add_(1)
    assert back["other"].tolist() == [1, 1, 1]
    assert parameter.tolist() == [1, 1, 1]
    assert back["p"].data_ptr() % 64 == 0


def test_tied_weights_stay_one_tensor(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(4, 3)
            self.head = torch.nn.Linear(3, 4, bias=False)
            self.head.weight = self.embed.weight

    path = save_checkpoint(tmp_path, "c", {"model": Tied().state_dict()}, META, Arrays())
    back = load_checkpoint(path, Arrays()).tree["model"]
    assert back["embed.weight"] is back["head.weight"]
    assert (path / "arrays-00000.safetensors").stat().st_size < 1000


def test_views_of_one_memory_that_differ_stay_apart():
    base = torch.arange(6.0)
    tree = {"a": base, "b": base[:3], "c": base.view(2, 3), "d": base.view(torch.int32), "e": base[:]}
    skeleton, arrays = flatten(tree, Arrays())
    assert len(arrays) == 4
    assert skeleton["a"] == skeleton["e"]


def test_empty_tensors_are_not_taken_for_one_another(tmp_path):
    one, other = torch.zeros(0), torch.zeros(0)
    back = there_and_back(tmp_path, [one, other, one])
    assert back[0] is back[2]
    assert back[0] is not back[1]


def test_numpy_arrays_stay_numpy_beside_tensors_of_the_same_memory(tmp_path):
    array = np.arange(3.0)
    back = there_and_back(tmp_path, {"n": array, "t": torch.from_numpy(array)})
    assert isinstance(back["n"], np.ndarray)
    assert isinstance(back["t"], torch.Tensor)


def test_contiguous_tensors_are_not_copied_before_they_are_written():
    tensor = torch.arange(6.0)
    (host,) = flatten([tensor], Arrays())[1].values()
    tensor[0] = 5
    assert host.data.view(np.float32)[0] == 5


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(len(steps))
    for _ in steps:
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def make(memory_format):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))
    model = model.to(memory_format=memory_format)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_model_and_its_optimizer_go_on_exactly_as_if_never_stopped(tmp_path, memory_format):
    model, optimizer = make(memory_format)
    train(model, optimizer, range(3))
    tree = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    back = there_and_back(tmp_path, tree)
    train(model, optimizer, range(4))

    resumed, its_optimizer = make(memory_format)
    resumed.load_state_dict(back["model"])
    its_optimizer.load_state_dict(back["optimizer"])
    train(resumed, its_optimizer, range(4))
    for one, other in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert same(one, other)
    ours, theirs = its_optimizer.state_dict(), optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for key, state in theirs["state"].items():
        assert all(same(ours["state"][key][name], value) for name, value in state.items())


def test_a_state_dict_keeps_its_type_and_module_versions(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    back = there_and_back(tmp_path, state)
    assert type(back) is OrderedDict
    assert back._metadata == state._metadata
    assert back._metadata[""] == {"version": 2}


@pytest.mark.parametrize(
    ("make", "what", "way_out"),
    [
        (lambda: torch.zeros(2, device="meta"), "a tensor on the meta device", "to_empty"),
        (lambda: torch.eye(2).to_sparse(), r"a sparse tensor \(torch\.sparse_coo\)", r"to_dense\(\)"),
        (
            lambda: torch.empty(4, dtype=torch.float4_e2m1fn_x2),
            r"a tensor of the packed dtype torch\.float4",
            "uint8",
        ),
        (lambda: torch.empty(4, dtype=torch.bits8), r"a tensor of the packed dtype torch\.bits8", "uint8"),
        (
            torch.nn.UninitializedParameter,
            "a tensor of the subclass UninitializedParameter",
            "as_subclass",
        ),
    ],
)
def test_a_tensor_without_bytes_of_its_own_is_refused_by_path(make, what, way_out):
    with pytest.raises(UnsavableValueError, match=rf"^model\.w\[1\] is {what}.*; expected a dense tensor.*{way_out}"):
        flatten({"model": {"w": [0, make()]}}, Arrays())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "a quantized tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        (lambda: torch.eye(2).to_sparse_csr(), "a sparse tensor"),
    ],
)
def test_tensors_that_torch_warns_of_are_refused_too(make, what):
    with pytest.raises(UnsavableValueError, match=rf"^w is {what}"):
        flatten({"w": make()}, Arrays())


def test_a_subclass_is_refused_rather_than_stripped():
    class Labelled(torch.Tensor):
        pass

    with pytest.raises(UnsavableValueError, match=r"^w is a tensor of the subclass \S*Labelled"):
        flatten({"w": torch.ones(2).as_subclass(Labelled)}, Arrays())


def test_without_the_adapter_the_message_names_it():
    with pytest.raises(UnsavableValueError, match=r"^w is a value of type torch\.Tensor; .*the backend's adapter"):
        flatten({"w": torch.ones(2)})


def test_without_an_adapter_tensors_come_back_as_host_values(tmp_path):
    tree = {"f": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)}
    path = save_checkpoint(tmp_path, "c", tree, META, Arrays())
    back = load_checkpoint(path).tree
    assert isinstance(back["f"], np.ndarray)
    assert isinstance(back["b"], HostArray)
    again = load_checkpoint(save_checkpoint(tmp_path, "d", {"b": back["b"]}, META), Arrays()).tree
    assert same(again["b"], tree["b"])


def test_a_dtype_that_this_torch_lacks_is_told():
    host = HostArray("float6_e3m2", (1,), np.zeros(1, np.uint8))
    with pytest.raises(CheckpointMismatchError, match=r"dtype is 'float6_e3m2'; expected one that torch .* has"):
        Arrays().decode(host)
    with pytest.raises(CheckpointMismatchError, match=r"^model\.w is an array of float6_e3m2 .*Use a newer torch"):
        unflatten({"model": {"w": ["array", "w"]}}, {"w": host}, Arrays())


def test_read_only_bytes_are_copied_rather_than_warned_of():
    data = np.frombuffer(bytes(8), np.uint8)
    tensor = Arrays().decode(HostArray("float32", (2,), data))
    tensor.add_(1)
    assert data.sum() == 0


def test_a_deep_copy_is_another_array():
    tensor = torch.ones(2)
    assert Arrays().identity(tensor) == Arrays().identity(tensor.detach())
    assert Arrays().identity(tensor) != Arrays().identity(copy.deepcopy(tensor))
    assert Arrays().identity(np.ones(2)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_tensors_come_back_on_the_cpu(tmp_path):
    tensor = torch.randn(3, 4, device="cuda")
    back = there_and_back(tmp_path, {"w": tensor, "t": tensor.T, "tied": tensor})
    assert same(back["w"], tensor.cpu())
    assert same(back["t"], tensor.cpu().T)
    assert back["w"] is back["tied"]
    assert back["w"].device.type == "cpu"
