"""Weights of a checkpoint as a state dict that plain PyTorch loads."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import parhelion_torch as backend  # noqa: E402 - only where torch is
from parhelion.checkpoint import export_weights, save_checkpoint  # noqa: E402
from parhelion.errors import CheckpointError, CheckpointMismatchError  # noqa: E402

META = {"run_name": "run", "global_epoch": 1, "global_iteration": 1}


@pytest.fixture
def saved(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last))
    net[0].bias.data = net[0].bias.data.to(torch.bfloat16)
    named = {**net.state_dict(), "tied": net[0].weight}
    tree = {"portable": {"weights": named, "average": None}, "model": {"net": net.state_dict()}}
    return save_checkpoint(tmp_path, "one", tree, META, backend.Arrays()), named


def test_torch_loads_the_file_without_running_code_and_ties_what_was_tied(saved, tmp_path):
    path, named = saved
    assert backend.export_state_dict(path, tmp_path / "weights.pt") == list(named)
    read = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert list(read) == list(named)
    for name, tensor in named.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())
        assert not read[name].requires_grad
    assert read["tied"].data_ptr() == read["0.weight"].data_ptr()


def test_a_module_takes_it(saved, tmp_path):
    path, named = saved
    backend.export_state_dict(path, tmp_path / "weights.pt", within=("model", "net"))
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 3, 3))
    net.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(net[1].weight, named["1.weight"])


def test_the_safetensors_file_holds_the_same(saved, tmp_path):
    reader = pytest.importorskip("safetensors.torch")
    path, named = saved
    export_weights(path, tmp_path / "weights.safetensors")
    read = reader.load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in named.items())


def test_arrays_of_numpy_become_tensors(tmp_path):
    path = save_checkpoint(tmp_path, "one", {"w": np.arange(3)}, META)
    backend.export_state_dict(path, tmp_path / "out", within=())
    assert torch.load(tmp_path / "out", weights_only=True)["w"].tolist() == [0, 1, 2]


def test_without_weights_or_a_folder_the_error_says_so(saved, tmp_path):
    path, _ = saved
    with pytest.raises(CheckpointMismatchError, match=r"no arrays at portable\.average"):
        backend.export_state_dict(path, tmp_path / "out", which="average")
    with pytest.raises(CheckpointError, match="weights could not be written to"):
        backend.export_state_dict(path, tmp_path / "missing" / "out")
