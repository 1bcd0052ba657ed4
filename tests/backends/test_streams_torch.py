"""Grain's and torchdata's iterators, and streams of our own, through real fits on torch: stopped, and gone on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
backend = pytest.importorskip("parhelion_torch")

import parhelion as ph  # noqa: E402
from parhelion.data import DataLoaderParams, DatasetSplit, MapStream, create_stream_loader, stream_batches  # noqa: E402
from parhelion.testing import first_difference, last_tree, rows_without_clocks  # noqa: E402
from parhelion_torch.data import collate  # noqa: E402
from support.torch_case import Net, make_trainer  # noqa: E402

# What torchdata calls in torch.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
SIZE = 22


def point(index: int) -> dict[str, Any]:
    x = np.sin(np.arange(6, dtype=np.float32) * (index + 1))
    return {"x": x, "label": index % 3, "index": index}


class Points(torch.utils.data.Dataset):
    """Draws from torch's own generator."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return {**point(index), "x": torch.from_numpy(point(index)["x"]) + torch.rand(6)}


class Quiet(Points):
    """Draws nothing: torchdata does not say how far its workers' generators are."""

    def __getitem__(self, index: int) -> Any:
        return point(index)


class Data(ph.DataModule):
    def __init__(self, make_loader: Any) -> None:
        self.make_loader = make_loader

    def setup(self) -> None:
        self._valid_dataset = self._create_dataset(Points(), {"batch_size": 9})

    def train_dataloader(self) -> Any:
        return self.make_loader()


def records(stream: Any, **params: Any) -> Any:
    return create_stream_loader(
        stream,
        DatasetSplit.TRAIN,
        DataLoaderParams(**{"batch_size": 4, **params}),
        default_collate=collate,
    )


def stateful_loader(dataset: Any = None, **options: Any) -> Any:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    return torchdata.StatefulDataLoader(dataset or Points(), **{"batch_size": 4, **options})


def nodes() -> Any:
    nodes = pytest.importorskip("torchdata.nodes")
    mapped = nodes.Mapper(nodes.IterableWrapper(range(SIZE)), point)
    return nodes.Loader(nodes.Mapper(nodes.Batcher(mapped, batch_size=4, drop_last=False), collate))


def grain_dataset() -> Any:
    grain = pytest.importorskip("grain")
    return grain.MapDataset.range(SIZE).shuffle(seed=3).map(point).to_iter_dataset()


def grain_loader() -> Any:
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(SIZE, shuffle=True, seed=1, num_epochs=1)

    class Record(grain.transforms.Map):
        def map(self, element: Any) -> Any:
            return {name: np.asarray(value) for name, value in point(int(element)).items()}

    operations = [Record(), grain.transforms.Batch(4, drop_remainder=False)]
    return grain.DataLoader(data_source=range(SIZE), sampler=sampler, operations=operations)


SOURCES = {
    "torchdata, in order": stateful_loader,
    "torchdata, shuffled": lambda: stateful_loader(shuffle=True),
    "torchdata, shuffled by its generator": lambda: stateful_loader(
        shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "torchdata's nodes": nodes,
    "torchdata, records": lambda: records(stateful_loader(shuffle=True, batch_size=None), batch_size=4),
    "Grain's data loader": lambda: stream_batches(grain_loader()),
    "Grain's dataset": lambda: records(grain_dataset()),
    "Grain's dataset in epochs of a given length": lambda: records(grain_dataset(), options={"records_per_epoch": 13}),
    "our own": lambda: records(MapStream(Points(), num_lanes=4).shuffle(5), shuffle=True),
}


def check_resumes(make_loader: Any, tmp_path: Any, stop: int, **options: Any) -> Any:
    options = {"total_steps": 3, "valid_frequency": 1, **options}
    models = [Net(), Net(), Net()]
    trainer = make_trainer(chkpt_root=tmp_path / "whole", **options)
    assert trainer.fit(models[0], Data(make_loader)), trainer.error
    walker = make_trainer(chkpt_root=tmp_path / "parts", **options)
    for state in walker.steps(models[1], Data(make_loader)):
        if state.global_iteration == stop:
            walker.save_checkpoint()
            break
    resumed = make_trainer(chkpt_root=tmp_path / "parts", **options)
    assert resumed.fit(models[2], Data(make_loader), resume="must"), resumed.error
    assert models[1].seen + models[2].seen == models[0].seen
    assert rows_without_clocks(resumed.history) == rows_without_clocks(trainer.history)
    trees = [last_tree(tmp_path / each / "net", backend.Arrays()) for each in ("whole", "parts")]
    assert first_difference(*trees) is None
    return models[0]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("stop", [2, 6, 8])  # in the middle of an epoch, at its end, and of the next one
def test_a_run_on_a_source_that_says_its_state_goes_on_as_if_it_had_not_been_stopped(name, stop, tmp_path) -> None:
    make_loader = SOURCES[name]
    model = check_resumes(make_loader, tmp_path, stop)
    first_epoch = [index for rows, _ in model.seen for index in rows][:SIZE]
    if "given length" not in name and "records" not in name:
        assert sorted(first_epoch) == list(range(SIZE))


def test_each_epoch_of_a_shuffled_source_has_another_order(tmp_path) -> None:
    model = check_resumes(SOURCES["torchdata, shuffled"], tmp_path, 2)
    orders = [[index for rows, _ in model.seen[k : k + 6] for index in rows] for k in (0, 6, 12)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len({*map(tuple, orders)}) == 3


# Its workers are forked, of which jax warns if another test has started it in this process.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.processes
def test_a_source_with_worker_processes_of_its_own_resumes(tmp_path) -> None:
    check_resumes(lambda: stateful_loader(Quiet(), num_workers=1, shuffle=True), tmp_path, 3, total_steps=2)


@pytest.mark.processes
def test_a_stream_of_our_own_with_workers_is_the_one_without(tmp_path) -> None:
    def seen(workers: int) -> Any:
        trainer, model = make_trainer(total_steps=2), Net()
        stream = MapStream(Points(), num_lanes=4).shuffle(5)
        assert trainer.fit(model, Data(lambda: records(stream, num_workers=workers))), trainer.error
        return model.seen

    assert seen(2) == seen(0)
