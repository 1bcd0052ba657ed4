"""What a checkpoint knows of the sampler: the settings that a resumed run must have, and where in its phases it is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from parhelion.checkpoint import list_checkpoints, load_checkpoint
from parhelion.data import create_loader
from parhelion.errors import CheckpointMismatchError
from parhelion.sampling import (
    ResumableBucketSampler,
    ResumableCurriculumSampler,
    ResumableMixtureSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableWeightedSampler,
)
from support.plain import Data, Descent, make_trainer

SIZE = 20


class Ordered(Data):
    """The usual training records in the order of a sampler."""

    def __init__(self, make_sampler: Any) -> None:
        super().__init__(SIZE, None)
        self.make_sampler = make_sampler

    def setup(self) -> None:
        # A sampler belongs to the run that it is made for.
        self.params["sampler"] = self.make_sampler()
        super().setup()


def curriculum(length: int = 10, name: str = "hard") -> ResumableSampler:
    phases = [("easy", 0, length), (name, 1, 10), ("again", 0, 20 - length)]
    return ResumableCurriculumSampler([5, 15], phases, seed=3, batch_size=4)


def fit(root: Any, make_sampler: Any, updates: int, **options: Any) -> Descent:
    model = Descent()
    trainer = make_trainer(train_unit="iteration", total_steps=updates, chkpt_root=root, chkpt_frequency=1)
    assert trainer.fit(model, Ordered(make_sampler), **options)
    return model


def test_a_reader_without_the_library_sees_the_phase_too(tmp_path) -> None:
    fit(tmp_path, curriculum, 3)
    newest = max(list_checkpoints(tmp_path / "descent"), key=lambda entry: entry.iteration)
    assert '"position":{"phase":"hard"}' in (newest.path / "manifest.json").read_text().replace(" ", "").replace(
        "\n", ""
    )


def trees(root: Any) -> dict[int, Any]:
    return {entry.iteration: load_checkpoint(entry.path).tree for entry in list_checkpoints(root / "descent")}


def test_a_checkpoint_says_in_which_phase_the_run_is(tmp_path) -> None:
    fit(tmp_path, curriculum, 14)
    # Phases of 10 samples each, batches of 4: what comes after batch k is sample 4 k of the epoch of 30.
    expected = {1: "easy", 2: "easy", 3: "hard", 4: "hard", 5: "again", 6: "again", 7: "again", 8: "easy", 11: "hard"}
    assert {k: tree["position"] for k, tree in trees(tmp_path).items() if k in expected} == {
        k: {"phase": phase} for k, phase in expected.items()
    }


@pytest.mark.parametrize("stop", [1, 3, 5, 8, 10])
def test_a_run_stopped_in_any_phase_goes_on_as_if_it_never_stopped(tmp_path, stop) -> None:
    whole = fit(tmp_path / "whole", curriculum, 12)
    before = fit(tmp_path / "broken", curriculum, stop)
    after = fit(tmp_path / "broken", curriculum, 12)
    assert before.journal + after.journal == whole.journal
    assert np.array_equal(after.weights, whole.weights)


def test_a_sampler_without_phases_has_nothing_written_about_its_position(tmp_path) -> None:
    fit(tmp_path, lambda: ResumableRandomSampler(range(SIZE), 3, 4), 1)
    tree = trees(tmp_path)[1]
    assert tree["position"] == {}
    assert tree["facts"]["sampler_settings"] == {}


def mixture(first: int) -> ResumableSampler:
    return ResumableMixtureSampler([5, 15], [first, 1], num_samples=20, seed=3, batch_size=4)


def weighted(last: float) -> ResumableSampler:
    return ResumableWeightedSampler(range(SIZE), [1.0] * 19 + [last], seed=3, batch_size=4)


def bucket(chunk_size: int) -> ResumableSampler:
    return ResumableBucketSampler(range(SIZE), range(SIZE), 12, chunk_size, seed=3, batch_size=4)


@pytest.mark.parametrize(
    ("make", "old", "new", "told"),
    [
        (mixture, 1, 3, "sampler_settings has weights ['3/4', '1/4'] and had ['1/2', '1/2'] when it was saved"),
        (weighted, 1.0, 2.0, "sampler_settings has weights '"),
        (bucket, 4, 6, "sampler_settings has chunk_size 6 and had 4 when it was saved"),
        (curriculum, 10, 12, "sampler_settings has phases [['easy', 0, 5, 12], "),
    ],
)
def test_other_settings_of_the_sampler_are_refused_with_both_values_unless_they_are_allowed(
    tmp_path, make, old, new, told
) -> None:
    fit(tmp_path, lambda: make(old), 2)
    with pytest.raises(CheckpointMismatchError, match=re.escape(told)) as refusal:
        fit(tmp_path, lambda: make(new), 4)
    assert "allow_changes=('sampler_settings',)" in str(refusal.value)
    fit(tmp_path, lambda: make(new), 4, allow_changes=["sampler_settings"])


def test_only_the_settings_that_differ_are_told(tmp_path) -> None:
    fit(tmp_path, lambda: bucket(4), 1)
    with pytest.raises(CheckpointMismatchError) as refusal:
        fit(tmp_path, lambda: bucket(6), 4)
    assert "window" not in str(refusal.value)


def test_a_checkpoint_from_before_there_were_settings_still_loads(tmp_path, monkeypatch) -> None:
    whole = fit(tmp_path / "whole", curriculum, 6)
    with monkeypatch.context() as patch:
        from parhelion.training import _run

        snapshot = _run.Run.snapshot

        def without(self: Any, state: Any) -> dict[str, Any]:
            tree = snapshot(self, state)
            del tree["position"]
            tree["facts"] = {name: value for name, value in tree["facts"].items() if name != "sampler_settings"}
            return tree

        patch.setattr(_run.Run, "snapshot", without)
        before = fit(tmp_path / "old", curriculum, 2)
    assert "sampler_settings" not in trees(tmp_path / "old")[2]["facts"]
    after = fit(tmp_path / "old", curriculum, 6)
    assert before.journal + after.journal == whole.journal


def test_a_batch_size_may_change_where_the_order_does_not_depend_on_it(tmp_path) -> None:
    def with_batches(batch_size: int) -> Any:
        def make() -> ResumableSampler:
            return ResumableBucketSampler(range(SIZE), range(SIZE), 12, 4, seed=3, batch_size=batch_size)

        return make

    class Resized(Ordered):
        def setup(self) -> None:
            self.params["batch_size"] = self.make_sampler().batch_size
            super().setup()

    models = []
    for batch_size, total in ((4, 2), (3, 6)):
        model = Descent()
        trainer = make_trainer(train_unit="iteration", total_steps=total, chkpt_root=tmp_path, chkpt_frequency=1)
        assert trainer.fit(model, Resized(with_batches(batch_size)))
        models.append(model)
    delivered = [index for model in models for _, batch in model.journal for index in batch]
    assert delivered == list(with_batches(4)())


def test_the_loader_takes_any_sampler_in_process() -> None:
    from parhelion.data import DataLoaderParams, DatasetSplit

    params = DataLoaderParams(batch_size=4, sampler=mixture(1), random_seed=3)
    loader, sampler = create_loader(range(SIZE), DatasetSplit.TRAIN, params)
    assert np.concatenate(list(loader)).tolist() == list(sampler)
