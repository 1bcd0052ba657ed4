"""A run that is stopped and started again is the run that never stopped: every step, every schedule, bit for bit.

The oracle is always an uninterrupted run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import parhelion as ph
from parhelion.checkpoint import list_checkpoints
from parhelion.testing import last_tree, rows_without_clocks, same

EPOCHS = 3


def run(case: Any, root: Path, *, schedule: str, steps: int, workers: int, **options: Any) -> tuple[Any, Any]:
    model = case.make_model(schedule)
    trainer = case.make_trainer(
        **{
            "total_steps": EPOCHS,
            "valid_frequency": 1,
            "print_frequency": 2,
            "accumulation_steps": steps,
            "chkpt_root": root,
            "chkpt_every_iterations": 1,
            **options,
        }
    )
    assert trainer.fit(model, case.Data(workers)), trainer.error
    return trainer, model


def only(checkpoint: Path, root: Path) -> Path:
    """Return a root in which the given checkpoint is the newest: as if the run had been killed just after it."""
    shutil.copytree(checkpoint, root / "net" / checkpoint.name)
    shutil.copy(checkpoint.parent / "history.jsonl", root / "net")
    return root


def assert_same_run(case: Any, whole: tuple[Any, Any, Path], part: tuple[Any, Any, Path], done: int) -> None:
    trainer, model, root = whole
    again, twin, other = part
    assert twin.seen == model.seen[done:]
    assert again.state == trainer.state
    assert rows_without_clocks(again.history) == rows_without_clocks(trainer.history)
    assert same(last_tree(other / "net", case.adapter), last_tree(root / "net", case.adapter))


@pytest.mark.parametrize("workers", [(0, 2), (2, 0)], ids=["0 then 2 workers", "2 then 0 workers"])
@pytest.mark.parametrize("steps", [1, 3], ids=["no accumulation", "accumulation 3"])
@pytest.mark.parametrize("schedule", ["update", "epoch", "hook"])
def test_a_resume_at_any_step_is_the_run_that_never_stopped(case, tmp_path, schedule, steps, workers) -> None:
    before, after = workers
    trainer, model = run(case, tmp_path / "whole", schedule=schedule, steps=steps, workers=before)
    checkpoints = list_checkpoints(tmp_path / "whole" / "net")
    updates = EPOCHS * -(-case.NUM_BATCHES // steps)
    assert len(checkpoints) == updates == trainer.state.current_iteration
    for entry in checkpoints:
        case.poison()
        root = only(entry.path, tmp_path / f"from-{entry.iteration}")
        again, twin = run(case, root, schedule=schedule, steps=steps, workers=after)
        assert_same_run(case, (trainer, model, tmp_path / "whole"), (again, twin, root), entry.iteration)


@pytest.mark.parametrize("schedule", ["native update", "native epoch", "metric", "none"])
def test_every_kind_of_schedule_goes_on_where_it_was(case, tmp_path, schedule) -> None:
    trainer, model = run(case, tmp_path / "whole", schedule=schedule, steps=1, workers=0)
    for entry in list_checkpoints(tmp_path / "whole" / "net")[::3]:
        case.poison()
        root = only(entry.path, tmp_path / f"from-{entry.iteration}")
        again, twin = run(case, root, schedule=schedule, steps=1, workers=0)
        assert_same_run(case, (trainer, model, tmp_path / "whole"), (again, twin, root), entry.iteration)


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_two_resumes_in_a_row_and_the_epochs_after(case, tmp_path, unit) -> None:
    """A second resume in the same epoch, and one in a later epoch, keep order and offset (and leak neither)."""
    total = EPOCHS if unit == "epoch" else EPOCHS * case.NUM_BATCHES
    options = {"train_unit": unit, "total_steps": total, "valid_frequency": None}
    trainer, model = run(case, tmp_path / "whole", schedule="update", steps=1, workers=0, **options)
    seen: list[Any] = []
    for stop in (2, 5, 9, 16, total if unit == "iteration" else EPOCHS * case.NUM_BATCHES):
        case.poison()
        part = case.make_model("update")
        walker = case.make_trainer(
            **options, print_frequency=2, chkpt_root=tmp_path / "parts", chkpt_every_iterations=1
        )
        for state in walker.steps(part, case.Data(0)):
            if state.global_iteration == stop and stop < EPOCHS * case.NUM_BATCHES:
                break
        seen += part.seen
    assert seen == model.seen
    assert rows_without_clocks(walker.history) == rows_without_clocks(trainer.history)
    assert same(
        last_tree(tmp_path / "parts" / "net", case.adapter), last_tree(tmp_path / "whole" / "net", case.adapter)
    )


def test_a_finished_run_does_no_step_and_says_so(case, tmp_path, caplog) -> None:
    run(case, tmp_path, schedule="update", steps=1, workers=0)
    with caplog.at_level("INFO", "parhelion"):
        trainer, model = run(case, tmp_path, schedule="update", steps=1, workers=0)
    assert model.seen == []
    assert trainer.stop_reason == "finished"
    assert "nothing to do: the run is finished" in caplog.text


def test_a_larger_total_goes_on(case, tmp_path) -> None:
    whole, model = run(case, tmp_path / "whole", schedule="epoch", steps=1, workers=0)
    _, first = run(case, tmp_path / "parts", schedule="epoch", steps=1, workers=0, total_steps=1)
    again, second = run(case, tmp_path / "parts", schedule="epoch", steps=1, workers=2)
    assert first.seen + second.seen == model.seen
    assert same(
        last_tree(tmp_path / "parts" / "net", case.adapter), last_tree(tmp_path / "whole" / "net", case.adapter)
    )
    assert again.state == whole.state


def test_an_early_stopped_run_does_no_further_step(case, tmp_path) -> None:
    options = {"total_steps": 40, "early_stop_cycles": 1, "chkpt_every_iterations": None}

    def stubborn() -> Any:
        model = case.make_model("update")
        model.have_metrics_improved = lambda: False
        return model

    for expected in (case.NUM_BATCHES, 0):
        model = stubborn()
        trainer = case.make_trainer(valid_frequency=1, chkpt_root=tmp_path, **options)
        assert trainer.fit(model, case.Data(0)) is True
        assert trainer.stop_reason == "early_stop"
        assert len(model.seen) == expected


def test_a_unit_may_change_at_a_resume(case, tmp_path) -> None:
    whole, model = run(case, tmp_path / "whole", schedule="update", steps=1, workers=0)
    _, first = run(
        case, tmp_path / "parts", schedule="update", steps=1, workers=0, train_unit="iteration", total_steps=10,
        valid_frequency=case.NUM_BATCHES,
    )  # fmt: skip
    again, second = run(case, tmp_path / "parts", schedule="update", steps=1, workers=0)
    assert first.seen + second.seen == model.seen
    assert again.state == whole.state


def test_a_checkpoint_on_an_epoch_s_last_batch_is_followed_by_full_epochs(case, tmp_path) -> None:
    run(case, tmp_path, schedule="update", steps=1, workers=0, total_steps=1)
    (last,) = [each for each in list_checkpoints(tmp_path / "net") if each.iteration == case.NUM_BATCHES]
    assert last.path.name == f"net_epoch_1_iter_{case.NUM_BATCHES}"
    _, model = run(case, tmp_path, schedule="update", steps=1, workers=0, total_steps=3)
    assert len(model.seen) == 2 * case.NUM_BATCHES
    for epoch in (model.seen[: case.NUM_BATCHES], model.seen[case.NUM_BATCHES :]):
        assert sorted(index for ids, _ in epoch for index in ids) == list(range(case.SIZE))


@pytest.mark.parametrize("batch_size", [2, 6, 7])
def test_another_batch_size_delivers_the_rest_of_the_epoch_once_and_in_order(
    case, tmp_path, batch_size, monkeypatch, caplog
) -> None:
    _, model = run(case, tmp_path / "whole", schedule="none", steps=1, workers=0)
    order = [index for ids, _ in model.seen for index in ids]
    entry = next(each for each in list_checkpoints(tmp_path / "whole" / "net") if each.iteration == 3)
    root = only(entry.path, tmp_path / "parts")
    monkeypatch.setattr(case, "BATCH_SIZE", batch_size)
    with caplog.at_level("INFO", "parhelion"):
        _, twin = run(case, root, schedule="none", steps=1, workers=0)
    assert [index for ids, _ in twin.seen for index in ids] == order[12:]
    assert f"batch_size was 4 and is {batch_size}" in caplog.text


def test_must_insists_never_starts_anew_and_a_path_is_taken(case, tmp_path) -> None:
    def fit(resume: Any, **options: Any) -> Any:
        model = case.make_model("none")
        trainer = case.make_trainer(total_steps=2, chkpt_root=tmp_path, chkpt_every_iterations=1, **options)
        assert trainer.fit(model, case.Data(0), resume=resume)
        return model

    with pytest.raises(ValueError, match=r"resume is 'must' and there is no good checkpoint in .*; expected one"):
        fit("must")
    whole = fit("auto")
    assert fit("must").seen == []
    third = tmp_path / "net" / "net_epoch_1_iter_3"
    assert fit(third).seen == whole.seen[3:]
    assert not (tmp_path / "net" / "net_epoch_1_iter_4.superseded").is_file()
    assert fit("auto").seen == []
    anew = fit("never")
    assert anew.seen == whole.seen
    assert (tmp_path / "net.old").is_dir()


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ({"random_seed": 5}, "random_seed", "5 and was 6691"),
        ({"accumulation_steps": 2}, "accumulation_steps", "2 and was 1"),
    ],
)
def test_another_experiment_is_refused_unless_allowed(case, tmp_path, change, name, values) -> None:
    run(case, tmp_path, schedule="none", steps=1, workers=0, total_steps=1)
    options = {"total_steps": 2, "chkpt_root": tmp_path, **change}
    with pytest.raises(
        ph.ParhelionError, match=rf"belongs to another experiment: {name} is {values} when it was saved"
    ):
        case.make_trainer(**options).fit(case.make_model("none"), case.Data(0))
    assert case.make_trainer(**options).fit(case.make_model("none"), case.Data(0), allow_changes=(name,))


def test_data_of_another_length_or_seed_is_refused(case, tmp_path, monkeypatch) -> None:
    run(case, tmp_path, schedule="none", steps=1, workers=0, total_steps=1)
    monkeypatch.setattr(case, "SIZE", 20)
    with pytest.raises(ph.ParhelionError, match=r"data_length is 20 and was 26"):
        case.make_trainer(total_steps=2, chkpt_root=tmp_path).fit(case.make_model("none"), case.Data(0))
    with pytest.raises(ValueError, match=r"allow_changes has \['length'\]; expected some of"):
        case.make_trainer(total_steps=2, chkpt_root=tmp_path).fit(
            case.make_model("none"), case.Data(0), allow_changes=("length",)
        )


def test_weights_of_a_checkpoint_may_begin_another_run(case, tmp_path) -> None:
    _, trained = run(case, tmp_path / "one", schedule="none", steps=1, workers=0, total_steps=1)
    last = ph.find_last_checkpoint(tmp_path / "one" / "net")
    model = case.make_model("none")
    trainer = case.make_trainer(total_steps=0)
    assert trainer.fit(model, case.Data(0), init_from=last)
    assert same(model.trained_state_dict(), trained.trained_state_dict())


def test_only_the_newest_are_kept_and_a_damaged_newest_is_passed_over(case, tmp_path, caplog) -> None:
    trainer, model = run(case, tmp_path / "whole", schedule="none", steps=1, workers=0, chkpt_keep_last=2)
    kept = list_checkpoints(tmp_path / "whole" / "net")
    assert [each.iteration for each in kept] == [21, 20]
    _, _ = run(case, tmp_path / "hurt", schedule="none", steps=1, workers=0, total_steps=2)
    newest = list_checkpoints(tmp_path / "hurt" / "net")[0].path
    arrays = newest / "arrays-00000.safetensors"
    content = bytearray(arrays.read_bytes())
    content[-5] ^= 4
    arrays.write_bytes(content)
    with caplog.at_level("WARNING", "parhelion"):
        again, twin = run(case, tmp_path / "hurt", schedule="none", steps=1, workers=0)
    assert newest.with_name(newest.name + ".damaged").is_dir()
    assert caplog.text.count("damaged") >= 1
    assert twin.seen == model.seen[13:]
    assert again.state == trainer.state
