"""What holds of training in each of two connected processes of two devices; every fact runs in both at once."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parhelion.checkpoint import list_checkpoints
from parhelion.errors import InvalidValueError
from parhelion.testing import first_difference, last_tree, rows_without_clocks
from parhelion_jax.arrays import Arrays
from parhelion_jax.world import discover_world
from support.spread_models import Classifier, Data, Explicit, host, make_trainer, train

WORLD = discover_world()
FIRST = WORLD.rank == 0


@contextlib.contextmanager
def shared_folder() -> Any:
    """Return a folder that both processes know."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(WORLD.gather(folder)[0])
        WORLD.barrier()


def fact_arguments_that_differ_are_an_error_in_both() -> None:
    message = r"total_steps is 2 in process 1 and 1 in process 0; expected the same in every process"
    with pytest.raises(InvalidValueError, match=message):
        make_trainer(total_steps=1 + WORLD.rank).fit(Classifier("mlp"), Data(8))
    with pytest.raises(InvalidValueError, match=r"chkpt_root is False in process 1 and True in process 0"):
        make_trainer(chkpt_root="/nowhere" if FIRST else None).fit(Classifier("mlp"), Data(8))
    with pytest.raises(InvalidValueError, match=r"data_length is 41 in process 1 and 40 in process 0"):
        make_trainer().fit(Classifier("mlp"), Data(8, 40 + WORLD.rank))
    with pytest.raises(InvalidValueError, match=r"steps_per_execution is 2 in process 1 and 1 in process 0"):
        make_trainer(steps_per_execution=1 + WORLD.rank).fit(Classifier("mlp"), Data(8))


def fact_checkpoints_that_only_one_sees_are_an_error_in_both() -> None:
    with tempfile.TemporaryDirectory() as own:
        if FIRST:
            (Path(own) / "classifier").mkdir()
        with shared_folder() as folder:
            options = {"train_unit": "iteration", "total_steps": 1}
            train(Classifier("mlp"), Data(8), chkpt_root=folder, **options)
            root = folder if FIRST else own
            with pytest.raises(InvalidValueError, match=r"the checkpoint to resume from is None in process 1 and 'c"):
                make_trainer(chkpt_root=root, **options).fit(Classifier("mlp"), Data(8))


def fact_what_the_first_cannot_find_ends_both() -> None:
    message = r"resume is 'must' and there is no good checkpoint"
    with shared_folder() as folder, pytest.raises(InvalidValueError, match=message):
        make_trainer(chkpt_root=folder).fit(Classifier("mlp"), Data(8), resume="must")


def fact_the_first_alone_prepares_the_data() -> None:
    class Prepared(Data):
        def prepare_data(self) -> None:
            prepared.append(WORLD.rank)

    prepared: list[int] = []
    train(Classifier("mlp"), Prepared(8))
    assert prepared == ([0] if FIRST else [])


def fact_the_first_decides_about_a_checkpoint() -> None:
    class Choosy(Classifier):
        def should_save_checkpoint(self) -> bool:
            return WORLD.rank == 0

    with shared_folder() as folder:
        train(Choosy("mlp"), Data(8), chkpt_root=folder)
        assert len(list_checkpoints(folder / "classifier")) == 1


def fact_a_model_by_hand_is_the_same_in_both() -> None:
    with shared_folder() as folder:
        model = Explicit()
        trainer, _ = train(model, Data(8), valid_frequency=1, chkpt_root=folder)
        assert first_difference(*WORLD.gather(rows_without_clocks(trainer.history))) is None
        assert first_difference(*WORLD.gather(host(model.w))) is None
        again, _ = train(Explicit(), Data(8), valid_frequency=1, chkpt_root=folder, total_steps=2)
        assert len(again.history) == 6
        whole, _ = train(Explicit(), Data(8), valid_frequency=1, total_steps=2)
        assert rows_without_clocks(again.history) == rows_without_clocks(whole.history)


class Split(Classifier):
    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        sharding = NamedSharding(self.placement.mesh, P(None, "model"))
        value = np.asarray(self.params["one"])
        self.params["one"] = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def fact_a_parameter_that_is_split_over_processes_is_saved_in_parts_and_goes_on_split() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    with shared_folder() as folder:
        whole, _ = train(Split("mlp"), Data(8), mesh=mesh, total_steps=2, chkpt_root=folder / "whole")
        train(Split("mlp"), Data(8), mesh=mesh, chkpt_root=folder / "parts")
        model = Split("mlp")
        again, _ = train(model, Data(8), mesh=mesh, total_steps=2, chkpt_root=folder / "parts")
        assert model.params["one"].sharding.spec == P(None, "model")
        assert rows_without_clocks(again.history) == rows_without_clocks(whole.history)
        trees = [last_tree(folder / name / "classifier", Arrays())["model"] for name in ("whole", "parts")]
        assert trees[0]["params"]["one"].shape == (64, 16)
        difference = first_difference(*trees)
        assert difference is None, difference


def fact_several_steps_per_call_are_the_same_bits() -> None:
    singly, together = (train(Classifier("mlp"), Data(8), steps_per_execution=k)[0].history for k in (1, 4))
    assert rows_without_clocks(singly) == rows_without_clocks(together)


def fact_each_process_may_have_data_of_its_own() -> None:
    class Own(Data):
        def setup(self) -> None:
            first = list(range(24 * WORLD.rank, 24 * WORLD.rank + 24))
            records = [{"image": np.full((8, 8, 1), k, np.float32), "label": k % 3, "index": k} for k in first]
            params = {"batch_size": 8, "is_distributed": False}
            self._train_dataset = self._create_dataset(records, params)
            self._valid_dataset = self._create_dataset(records[:20], params)

    trainer, journal = train(model := Classifier("mlp"), Own(8), valid_frequency=1)
    assert journal.notes.order[0] == [*range(8), *range(24, 32)]
    assert model.metrics["accuracy"].state_dict()["num_records"] == 40
    assert first_difference(*WORLD.gather(rows_without_clocks(trainer.history))) is None
