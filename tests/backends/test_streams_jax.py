"""Grain's iterators and packed tokens through real fits on jax, several iterations in a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
backend = pytest.importorskip("parhelion_jax")

import parhelion as ph  # noqa: E402
from parhelion.data import DataLoaderParams, DatasetSplit, MapStream, create_stream_loader, stream_batches  # noqa: E402
from parhelion.testing import last_tree  # noqa: E402
from support.small_jax import Line, Points, assert_resumes, make_trainer, programs  # noqa: E402

__all__ = ["programs"]

jnp = jax.numpy


class Data(ph.DataModule):
    def setup(self) -> None: ...

    def train_dataloader(self) -> Any:
        stream = MapStream(Points(), num_lanes=4).shuffle(4)
        return create_stream_loader(stream, DatasetSplit.TRAIN, DataLoaderParams(batch_size=4))


class GrainData(Data):
    def train_dataloader(self) -> Any:
        grain = pytest.importorskip("grain")
        points = Points()
        dataset = grain.MapDataset.range(len(points)).seed(4).shuffle().map(points.__getitem__)
        return stream_batches(dataset.to_iter_dataset().batch(4))


@pytest.mark.parametrize("data", [Data, GrainData])
@pytest.mark.parametrize(("chunk", "stop"), [(1, 4), (3, 3), (3, 8)])
def test_a_run_on_a_stream_resumes_with_iterations_grouped_in_any_way(data, chunk, stop, tmp_path) -> None:
    assert_resumes(
        Line, tmp_path, stop, data, steps_per_execution=chunk, train_unit="iteration", total_steps=14, chkpt_frequency=1
    )


def test_the_state_in_a_checkpoint_is_that_of_the_last_batch_trained_on(tmp_path) -> None:
    def saved(chunk: int) -> Any:
        trainer, root = (
            make_trainer(
                steps_per_execution=chunk, train_unit="iteration", total_steps=4, chkpt_root=tmp_path / str(chunk)
            ),
            tmp_path / str(chunk),
        )
        assert trainer.fit(Line(), Data()), trainer.error
        return last_tree(root / "line", backend.Arrays())["stream"]

    assert saved(1) == saved(3)
    assert sum(lane["count"] for lane in saved(3)["entry"]["lanes"].values()) == 16


class Tokens:
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return ph.sample_rng().integers(1, 50, 1 + index % 17, np.int32)


class Packed(Data):
    split = True

    def train_dataloader(self) -> Any:
        stream = MapStream(Tokens(), num_lanes=4).pack(16, separator=0, split=self.split, too_long="cut")
        params = DataLoaderParams(batch_size=3, shuffle=True)
        return create_stream_loader(stream, DatasetSplit.TRAIN, params)


class Fitted(Packed):
    split = False


class Bigram(backend.LossModel):
    """Predicts a token from the one before it in its segment."""

    def __init__(self, **options: Any) -> None:
        super().__init__("bigram", **options)

    def setup(self, fast_init: bool = False) -> None:
        import optax

        self.params = {"table": jax.random.normal(self.key("params"), (50, 50)) * 0.1}
        self.optimizer = optax.sgd(0.5)

    def loss(self, params: Any, batch: Any, key: Any) -> Any:
        tokens, segments = batch["tokens"], batch["segment_ids"]
        is_same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        scores = jax.nn.log_softmax(params["table"][tokens[:, :-1]])
        taken = jnp.take_along_axis(scores, tokens[:, 1:, None], -1)[..., 0]
        return -(taken * is_same).sum() / is_same.sum()


@pytest.mark.parametrize("data", [Packed, Fitted])
def test_a_run_on_packed_tokens_resumes(data, tmp_path) -> None:
    assert_resumes(Bigram, tmp_path, 7, data, steps_per_execution=3, total_steps=3, chkpt_frequency=1)
