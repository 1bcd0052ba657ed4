"""CUDAPlugin, with and without CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import parhelion as ph
import parhelion_torch as backend
from support.torch_case import Data, Explicit

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_without_cuda_the_plugin_says_what_to_do_instead(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"CUDAPlugin needs CUDA and torch finds none; .* Without the plugin"):
        backend.CUDAPlugin()


def test_the_plugin_is_registered_by_name(monkeypatch) -> None:
    assert "CUDAPlugin" in ph.PLUGIN_REGISTRY
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plugin = ph.create_plugin("CUDAPlugin")
    assert isinstance(plugin, backend.CUDAPlugin)
    assert (plugin.plug_id, backend.CUDAPlugin.plugin_id) == ("cuda", "cuda")
    flags = plugin.unique_overrides
    assert (flags.training_batch, flags.validation_batch, flags.testing_batch) == (True, True, True)
    assert not flags.should_training_stop


def test_it_registers_itself_when_it_configures_the_trainer(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    trainer, plugin = backend.Trainer(use_cpu=True), backend.CUDAPlugin()
    plugin.configure_trainer(trainer)
    plugin.configure_trainer(trainer)
    assert trainer.plugins["cuda"] is plugin
    plugin.setup()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_collection_of_one_s_own_may_be_returned_or_changed_in_place(monkeypatch, in_place) -> None:
    class Mine(backend.CUDAPlugin):
        def _move_collection_to_device(self, batch: Any) -> Any:
            batch[0] = f"{batch[0]} on {self.device}"
            return None if in_place else batch[:]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    trainer, plugin = backend.Trainer(use_cpu=True), Mine()
    trainer.register_plugin(plugin)
    batch = ["x"]
    assert plugin.process_training_batch(batch, ph.TrainingState()) == ["x on cpu"]
    assert plugin.process_validation_batch(["y"], 0) == ["y on cpu"]
    assert plugin.process_testing_batch(["z"], 0) == ["z on cpu"]
    assert plugin.rank == 0


@pytest.mark.gpu
@needs_cuda
def test_batches_of_every_kind_reach_the_gpu() -> None:
    class Boxed:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

    class Unboxing(backend.CUDAPlugin):
        def _move_collection_to_device(self, batch: Any) -> Any:
            batch["box"].x = batch["box"].x.to(self.device)

    class BoxedData(Data):
        def setup(self) -> None:
            super().setup()
            self._train_dataset.params.collate_fn = lambda records: {
                "box": Boxed(torch.stack([each["x"] for each in records])),
                "x": torch.stack([each["x"] for each in records]),
                "label": torch.tensor([each["label"] for each in records]),
                "index": torch.tensor([each["index"] for each in records]),
            }

    class Watching(Explicit):
        def setup(self, fast_init: bool = False) -> None:
            super().setup(fast_init)
            self.net.to(self.device)

        def train_step(self, batch: Any, state: ph.TrainingState) -> Any:
            assert batch["box"].x.is_cuda
            assert batch["x"].is_cuda
            return self.net(batch["x"]).sum()

    trainer = backend.Trainer(total_steps=1, gpus=[0], print_banner=False)
    trainer.register_plugin(Unboxing())
    assert trainer.fit(Watching(), BoxedData(0)), trainer.error
    assert trainer.gpu_ids == [0]


@pytest.mark.gpu
@needs_cuda
def test_what_is_on_the_gpu_already_is_not_copied() -> None:
    trainer, plugin = backend.Trainer(gpus=[0], print_banner=False), backend.CUDAPlugin()
    trainer.register_plugin(plugin)
    x = torch.ones(3, device="cuda")
    assert plugin.process_training_batch({"x": [x]}, ph.TrainingState())["x"][0] is x
