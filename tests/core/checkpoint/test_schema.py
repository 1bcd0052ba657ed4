"""Old checkpoints are brought up to date when they are read, step by step, and stay as they are on disk."""

import attrs
import numpy as np
import pytest

from parhelion.checkpoint import (
    _schema,
    load_checkpoint,
    register_upgrade,
    register_value_type,
    save_checkpoint,
    upgrade,
)
from parhelion.errors import (
    CheckpointMismatchError,
    CheckpointVersionError,
    DuplicateNameError,
    InvalidTypeError,
    InvalidValueError,
)

META = {"run_name": "run", "global_epoch": 1, "global_iteration": 1}


@pytest.fixture(autouse=True)
def no_upgrades(monkeypatch):
    monkeypatch.setattr(_schema, "_steps", {})


def rename_rate(tree):
    tree["sampler"]["rate"] = tree["sampler"].pop("speed")
    return tree


def add_order(tree):
    return {**tree, "sampler": {**tree["sampler"], "order": 1}}


def test_an_old_checkpoint_is_brought_up_to_date_by_a_chain_and_not_on_disk(tmp_path):
    state = {"sampler": {"speed": 3}, "weights": np.arange(4.0)}
    path = save_checkpoint(tmp_path, "old", state, {**META, "versions": {"sampler": 1}})
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    register_upgrade("sampler", 1, rename_rate)
    register_upgrade("sampler", 2, add_order)
    loaded = load_checkpoint(path)
    new = upgrade(loaded.tree, loaded.meta["versions"], {"sampler": 3, "trainer": 1})
    assert new["sampler"] == {"rate": 3, "order": 1}
    assert new["weights"] is loaded.tree["weights"]
    assert loaded.tree["sampler"] == {"speed": 3}
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_current_tree_is_returned_as_it_is():
    tree = {"sampler": {}}
    assert upgrade(tree, {"sampler": 2, "another's": 9}, {"sampler": 2}) is tree


def test_what_says_no_version_has_the_first():
    register_upgrade("sampler", 1, rename_rate)
    assert upgrade({"sampler": {"speed": 3}}, {}, {"sampler": 2}) == {"sampler": {"rate": 3}}


def test_only_the_steps_that_are_missing_are_done():
    register_upgrade("sampler", 1, rename_rate)
    register_upgrade("sampler", 2, add_order)
    assert upgrade({"sampler": {"rate": 1}}, {"sampler": 2}, {"sampler": 3}) == {"sampler": {"rate": 1, "order": 1}}


def test_a_newer_version_is_refused_by_name_with_both_versions():
    with pytest.raises(CheckpointVersionError, match=r"has version 4 of 'sampler'; expected at most 2, the newest"):
        upgrade({}, {"sampler": 4}, {"trainer": 1, "sampler": 2})


def test_a_gap_in_the_chain_is_an_error_that_names_the_step():
    register_upgrade("sampler", 1, rename_rate)
    register_upgrade("sampler", 3, add_order)
    with pytest.raises(CheckpointVersionError, match=r"version 1 of 'sampler', now 4, and nothing leads from 2 to 3"):
        upgrade({"sampler": {"speed": 1}}, {}, {"sampler": 4})


def test_an_upgrade_that_fails_names_its_step_and_keeps_the_cause():
    register_upgrade("sampler", 1, rename_rate)
    with pytest.raises(
        CheckpointMismatchError, match=r"of 'sampler' from version 1 failed \(KeyError: 'sampler'\)"
    ) as e:
        upgrade({}, {}, {"sampler": 2})
    assert isinstance(e.value.__cause__, KeyError)


def test_an_upgrade_that_forgets_to_return_is_refused():
    register_upgrade("sampler", 1, lambda tree: None)
    with pytest.raises(InvalidTypeError, match="of 'sampler' from version 1 returned None; expected the new tree"):
        upgrade({}, {}, {"sampler": 2})


def test_a_step_has_one_function():
    register_upgrade("sampler", 1, rename_rate)
    register_upgrade("sampler", 1, rename_rate)
    register_upgrade("another", 1, add_order)
    with pytest.raises(DuplicateNameError, match=r"'sampler' from version 1 is .*rename_rate already; expected one"):
        register_upgrade("sampler", 1, add_order)


def test_versions_count_from_one():
    with pytest.raises(InvalidValueError, match="from_version of 'sampler' is 0; expected an integer >= 1"):
        register_upgrade("sampler", 0, rename_rate)


@register_value_type
@attrs.frozen
class Rate:
    per_second: float


def test_a_value_type_that_changed_its_fields_is_made_of_its_former_shape(tmp_path):
    @attrs.frozen
    class OldRate:
        per_minute: float

    register_value_type(OldRate, name="tests.Rate of version 1")
    path = save_checkpoint(tmp_path, "old", {"rate": OldRate(120.0)}, META)
    register_upgrade("rates", 1, lambda tree: {**tree, "rate": Rate(tree["rate"].per_minute / 60)})
    assert upgrade(load_checkpoint(path).tree, {}, {"rates": 2}) == {"rate": Rate(2.0)}
