"""Runs whose checkpoints lie in a store that fsspec reaches."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fsspec")

from parhelion.checkpoint import RemotePath, list_checkpoints
from parhelion.errors import CheckpointError, InvalidValueError
from support.plain import Data, Descent, make_trainer


@pytest.fixture
def root() -> str:
    return f"memory://bucket-{uuid.uuid4().hex}/runs"


def iterations(root: str) -> list[int]:
    return [info.iteration for info in list_checkpoints(f"{root}/descent")][::-1]


def test_a_run_goes_on_from_a_store_as_from_a_disk(root, tmp_path) -> None:
    options = {"chkpt_every_iterations": 2, "chkpt_keep_last": 2, "print_frequency": 2}
    oracle, first, second = Descent(), Descent(), Descent()
    assert make_trainer(total_steps=3).fit(oracle, Data())
    trainer = make_trainer(total_steps=1, chkpt_root=root, log_path=tmp_path, **options)
    assert trainer.fit(first, Data()), trainer.error
    assert iterations(root) == [4, 5]
    again = make_trainer(total_steps=3, chkpt_root=RemotePath(root), log_path=tmp_path, **options)
    assert again.fit(second, Data(), resume="must"), again.error
    np.testing.assert_array_equal(second.weights, oracle.weights)
    assert first.journal + second.journal == oracle.journal
    assert [row["step"] for row in again.history] == [2, 4, 6, 8, 10, 12, 14]
    assert iterations(root) == [14, 15]


def test_a_fresh_run_and_an_older_checkpoint_set_those_in_the_way_aside(root) -> None:
    options = {"chkpt_every_iterations": 1, "total_steps": 1, "chkpt_root": root}
    assert make_trainer(**options).fit(Descent(), Data())
    older = str(list_checkpoints(f"{root}/descent")[2].path)
    trainer = make_trainer(**options | {"total_steps": 2})
    assert trainer.fit(Descent(), Data(), resume=older), trainer.error
    assert iterations(root) == [1, 2, *range(3, 11)]
    assert make_trainer(**options).fit(Descent(), Data(), resume="never")
    assert iterations(root) == [1, 2, 3, 4, 5]


def test_a_checkpoint_can_be_written_to_a_store_by_hand(root) -> None:
    trainer = make_trainer(total_steps=1)
    assert trainer.fit(Descent(), Data())
    path = trainer.save_checkpoint(f"{root}/by-hand")
    assert str(path) == f"{root}/by-hand"
    model, oracle = Descent(), Descent()
    other = make_trainer(total_steps=2, chkpt_root=root)
    assert other.fit(model, Data(), resume=str(path)), other.error
    assert make_trainer(total_steps=2).fit(oracle, Data())
    np.testing.assert_array_equal(model.weights, oracle.weights)


def test_a_url_without_a_place_or_with_one_slash_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"URL is 's3://'; expected '<scheme>://<place>'"):
        make_trainer(chkpt_root="s3://")
    for root in ("s3:/bucket/runs", Path("s3://bucket/runs")):
        with pytest.raises(InvalidValueError, match=r"path is 's3:/bucket/runs', a URL that was made a Path; expected"):
            make_trainer(chkpt_root=root)


def test_a_scheme_that_nobody_knows_is_refused_before_the_run() -> None:
    with pytest.raises(InvalidValueError, match=r"URL is 'foo://.*expected a scheme that fsspec knows"):
        make_trainer(total_steps=1, chkpt_root="foo://bucket/runs").fit(Descent(), Data())


def test_a_store_that_refuses_in_its_own_way_is_an_error_before_the_run(monkeypatch) -> None:
    memory = pytest.importorskip("fsspec.implementations.memory")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(memory.MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be locked \(RuntimeError: no credentials\)"):
        make_trainer(total_steps=1, chkpt_root="memory://refused/runs").fit(Descent(), Data())
