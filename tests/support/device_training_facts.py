"""What holds of training on eight devices; run in a process that has them."""

from __future__ import annotations

import functools
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parhelion.data import DataLoaderParams, DatasetSplit, choose_sampler
from parhelion.errors import InvalidValueError
from parhelion.testing import first_difference, last_tree, rows_without_clocks
from parhelion.training import TrainingUnit
from parhelion_jax.arrays import Arrays
from parhelion_jax.data import loader_for
from support.spread_models import Classifier, Data, Explicit, Journal, host, make_trainer, train

DEVICES = np.array(jax.devices())
ITERATIONS = {"train_unit": TrainingUnit.ITERATION}


@functools.cache
def run_twenty(network: str, devices: int, steps: int = 1) -> Any:
    """Return order, losses and rows of twenty updates, and the last weights."""
    model = Classifier(network, dropout=True)
    options = {**ITERATIONS, "total_steps": 20, "valid_frequency": 10, "steps_per_execution": steps}
    trainer, journal = train(model, Data(8), gpus=list(range(devices)), **options)
    assert trainer.placement.mesh.size == devices
    rows = rows_without_clocks(trainer.history)
    return journal.notes.order, [row["loss"] for row in rows], rows, host(model.params)


def first_gradients(network: str, devices: int) -> dict[str, np.ndarray]:
    """Return the gradients of the first step, as what plain descent takes from the weights.

    The rate is so large, a power of two, that what is left of the weights rounds nothing away.
    """
    rate = 1024
    model = Classifier(network, rate=rate)
    trainer = make_trainer(gpus=list(range(devices)), **ITERATIONS)
    steps = trainer.steps(model, Data(8))
    model.on_training_start = lambda: before.update(host(model.params))
    before: dict[str, np.ndarray] = {}
    next(steps)
    return {name: (before[name] - after) / rate for name, after in host(model.params).items()}


@functools.cache
def compare(network: str) -> None:
    one, eight = run_twenty(network, 1), run_twenty(network, 8)
    assert eight[0] == one[0]
    assert len(one[0]) == len(one[1]) == 20
    np.testing.assert_allclose(eight[1], one[1], rtol=1e-5)
    for name, value in one[3].items():
        np.testing.assert_allclose(eight[3][name], value, rtol=1e-3, atol=1e-5)
    mine, others = first_gradients(network, 8), first_gradients(network, 1)
    for name, gradient in others.items():
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_allclose(mine[name], gradient, rtol=0, atol=1e-6 * np.abs(gradient).max())


def fact_convolutions_train_on_eight_devices_as_on_one() -> None:
    compare("cnn")


def fact_dense_layers_train_on_eight_devices_as_on_one() -> None:
    compare("mlp")


def fact_several_steps_per_call_are_the_same_bits_on_eight_devices() -> None:
    singly, together = run_twenty("cnn", 8), run_twenty("cnn", 8, 4)
    for one, other in zip(singly[1:], together[1:], strict=True):
        assert first_difference(one, other) is None
    assert together[0] == singly[0]


def fact_a_short_last_batch_is_padded_from_the_start_of_the_epoch() -> None:
    for size, drop_last, wanted in [(42, False, 48), (42, True, 32), (48, False, 48), (48, True, 48)]:
        model = Classifier("mlp")
        trainer, journal = train(model, Data(16, size, drop_last=drop_last))
        order = [*chain.from_iterable(journal.notes.order)]
        assert len(order) == wanted
        assert order[size:] == order[: max(0, wanted - size)]
        assert len(set(order)) == min(size, wanted)
        assert (trainer.state.epoch, trainer.state.offset) == (1, 0)


def fact_eight_devices_get_the_places_of_eight_ranks() -> None:
    for size in range(33, 50):
        for drop_last in (False, True):
            asked = {"shuffle": True, "drop_last": drop_last, "is_distributed": True}
            ranks = [
                choose_sampler(
                    range(size), DataLoaderParams(batch_size=2, **asked), DatasetSplit.TRAIN, rank=rank, world=8
                )
                for rank in range(8)
            ]
            theirs = [list(rank) for rank in ranks]
            wanted = [rank[start : start + 2] for start in range(0, len(theirs[0]), 2) for rank in theirs]
            params = DataLoaderParams(batch_size=16, **asked | {"is_distributed": False})
            mine = list(loader_for(range(size), DatasetSplit.TRAIN, params, num_shards=8)[1])
            assert mine == [*chain.from_iterable(wanted)]
            rest = 0 if drop_last else size % 16
            assert len(mine) == size - size % 16 + -(-rest // 8) * 8


def fact_an_evaluation_counts_each_record_once() -> None:
    rows = [run_twenty("mlp", devices)[2] for devices in (1, 8)]
    values = [[row for row in each if "valid_loss" in row] for each in rows]
    assert len(values[0]) == 2
    for one, eight in zip(*values, strict=True):
        assert eight["valid_accuracy"] == one["valid_accuracy"]
        assert eight["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-5)
    results = []
    for devices in (1, 8):
        model, trainer = Classifier("mlp", rate=1e-9), make_trainer(gpus=list(range(devices)), total_steps=1)
        assert trainer.fit(model, Data(8))
        assert trainer.test(model, Data(8))
        outputs = trainer.predict(model, Data(8))
        counted = model.metrics["accuracy"].state_dict()
        results.append((trainer.test_results, outputs, counted))
        assert [len(logits) for logits, _ in outputs] == [8, 8, 5]
        labels = np.concatenate([np.asarray(label) for _, label in outputs])
        assert labels.tolist() == [k % 3 for k in range(21)]
    for name, value in results[0][0].items():
        assert results[1][0][name] == pytest.approx(value, rel=1e-6)


def fact_a_batch_size_that_does_not_divide_is_refused_at_the_start() -> None:
    model = Classifier()
    message = r"batch_size is 12 and a batch is split over 8 devices .* expected a multiple of 8"
    with pytest.raises(InvalidValueError, match=message):
        make_trainer().fit(model, Data(12))


def fact_ids_and_meshes_choose_devices() -> None:
    for options, wanted in [
        ({"gpus": [5, 2]}, [5, 2]),
        ({"gpus": [7]}, [7]),
        ({"mesh": Mesh(DEVICES[[6, 1, 3, 4]], ("batch",))}, [6, 1, 3, 4]),
        ({}, list(range(8))),
    ]:
        model = Classifier("mlp")
        trainer, _ = train(model, Data(8, size=8), **options)
        placed = model.params["one"].sharding.device_set
        assert {device.id for device in placed} == set(wanted)
        assert [device.id for device in trainer.placement.mesh.devices.flat] == wanted


class Split(Classifier):
    """An MLP whose hidden units are split over the axis "model"."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        mesh = self.placement.mesh
        for name, spec in {"one": P(None, "model"), "out": P("model")}.items():
            self.params[name] = jax.device_put(self.params[name], NamedSharding(mesh, spec))


def fact_a_split_parameter_stays_split_through_steps_and_a_resume() -> None:
    mesh = Mesh(DEVICES.reshape(4, 2), ("data", "model"))
    with tempfile.TemporaryDirectory() as folder:
        roots = Path(folder) / "whole", Path(folder) / "parts"
        for steps in (1, 4):
            options = {"mesh": mesh, "total_steps": 2, "valid_frequency": 1, "steps_per_execution": steps}
            whole, plain = Split("mlp"), Classifier("mlp")
            trainer, _ = train(whole, Data(8), chkpt_root=roots[0] / str(steps), **options)
            others, _ = train(plain, Data(8), **options | {"mesh": None, "gpus": [0]})
            np.testing.assert_allclose(
                [row["loss"] for row in trainer.history], [row["loss"] for row in others.history], rtol=1e-4
            )
            walker = make_trainer(chkpt_root=roots[1] / str(steps), chkpt_every_iterations=1, **options)
            walker.register_plugin(Journal())
            for state in walker.steps(Split("mlp"), Data(8)):
                if state.current_iteration >= 3:
                    break
            again = Split("mlp")
            resumed, _ = train(again, Data(8), chkpt_root=roots[1] / str(steps), **options)
            assert rows_without_clocks(resumed.history) == rows_without_clocks(trainer.history)
            trees = [last_tree(root / str(steps) / "classifier", Arrays()) for root in roots]
            assert (difference := first_difference(*trees)) is None, difference
            for model in (whole, again):
                assert model.params["one"].sharding.spec == P(None, "model")
                assert {part.data.shape for part in model.params["one"].addressable_shards} == {(64, 8)}
                trace = jax.tree.leaves(model._trained.opt_state)
                assert {part.data.shape for leaf in trace for part in leaf.addressable_shards} == {(64, 8), (8, 3)}


def fact_a_model_by_hand_goes_on_with_arrays_that_are_bound_to_no_device() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, _ = train(Explicit(), Data(8), valid_frequency=1, total_steps=2)
        train(Explicit(), Data(8), valid_frequency=1, chkpt_root=folder)
        again, _ = train(model := Explicit(), Data(8), valid_frequency=1, total_steps=2, chkpt_root=folder)
        assert rows_without_clocks(again.history) == rows_without_clocks(whole.history)
        assert not any(leaf.committed for leaf in (model.free["rate"], model.free["weak"]))
        assert model.free["weak"].weak_type


def fact_ready_batches_are_evaluated_whatever_divides() -> None:
    class Ready(Data):
        def train_dataloader(self) -> Any:
            batch = {"image": np.ones((8, 8, 8, 1), np.float32), "label": np.zeros(8, int), "index": np.arange(8)}
            return [batch, batch]

        def valid_dataloader(self) -> Any:
            return [*self.train_dataloader(), {name: x[:5] for name, x in self.train_dataloader()[0].items()}]

    histories = [train(Classifier("mlp"), Ready(8), valid_frequency=1, gpus=ids)[0].history for ids in (None, [0])]
    assert histories[0][-1]["valid_loss"] == pytest.approx(histories[1][-1]["valid_loss"], rel=1e-5)


def fact_a_training_batch_that_does_not_divide_is_an_error_that_names_the_field() -> None:
    class Odd(Data):
        def train_dataloader(self) -> Any:
            return [{"image": np.ones((9, 8, 8, 1), np.float32), "label": np.zeros(9, int), "index": np.arange(9)}]

    for steps in (1, 4):
        trainer = make_trainer(steps_per_execution=steps)
        assert not trainer.fit(Classifier("mlp"), Odd(8))
        assert "field 'image' of a batch has 9 rows; expected a multiple of 8" in str(trainer.error)
