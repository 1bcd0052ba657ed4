"""Plugins and their table."""

from __future__ import annotations

import pytest

import parhelion as ph
from parhelion.plugins import PluginTable
from support.plain import make_trainer


class Quiet(ph.Plugin):
    def setup(self) -> None:
        pass


def claiming(plug_id: str, **flags: bool) -> Quiet:
    plugin = Quiet(plug_id)
    plugin.unique_overrides = ph.UniquePluginOverrides(**flags)
    return plugin


def test_no_override_is_claimed_by_default() -> None:
    flags = Quiet("a").unique_overrides
    assert not any((flags.training_batch, flags.validation_batch, flags.testing_batch, flags.should_training_stop))


def test_a_registered_plugin_is_found_under_its_id_and_knows_its_trainer() -> None:
    trainer, plugin = make_trainer(), Quiet("a")
    trainer.register_plugin(plugin)
    assert trainer.plugins["a"] is plugin
    assert plugin.trainer is trainer
    assert (plugin.rank, plugin.device, plugin.is_distributed, plugin.map_loc) == (0, "cpu", False, "cpu")


def test_registering_the_same_object_again_changes_nothing() -> None:
    trainer, plugin = make_trainer(), claiming("a", training_batch=True)
    trainer.register_plugin(plugin)
    trainer.register_plugin(plugin)
    assert list(trainer.plugins) == ["a"]


def test_a_second_plugin_with_an_id_is_a_key_error() -> None:
    trainer = make_trainer()
    first = Quiet("a")
    trainer.register_plugin(first)
    with pytest.raises(KeyError, match=r"plugin id 'a' is taken by Quiet; ids are unique"):
        trainer.register_plugin(Quiet("a"))
    assert trainer.plugins["a"] is first


@pytest.mark.parametrize("flag", ["training_batch", "validation_batch", "testing_batch", "should_training_stop"])
def test_two_plugins_that_claim_one_override_are_a_value_error_and_nothing_is_half_registered(flag) -> None:
    trainer = make_trainer()
    trainer.register_plugin(claiming("a", **{flag: True}))
    second = claiming("b", **{flag: True})
    with pytest.raises(ValueError, match=rf"plugin 'b' overrides {flag}, and so does 'a'; expected one at most"):
        trainer.register_plugin(second)
    assert list(trainer.plugins) == ["a"]
    with pytest.raises(ph.ParhelionError, match="has no trainer"):
        _ = second.trainer


def test_assigning_to_the_mapping_runs_the_same_checks() -> None:
    table = PluginTable(make_trainer())
    table["a"] = Quiet("a")
    with pytest.raises(KeyError, match="taken"):
        table["a"] = Quiet("a")
    with pytest.raises(ValueError, match=r"plugin id is 'c'; expected 'b'"):
        table["c"] = Quiet("b")
    with pytest.raises(TypeError, match=r"plugin 'd' is 3; expected a parhelion.Plugin"):
        table["d"] = 3
    del table["a"]
    assert len(table) == 0


def test_a_plugin_needs_an_id() -> None:
    with pytest.raises(ValueError, match=r"plug_id is ''; expected a name"):
        Quiet("")


def test_plugins_are_made_by_name() -> None:
    registry_names = set(ph.PLUGIN_REGISTRY.names())
    ph.PLUGIN_REGISTRY.register(Quiet, name="quiet-for-this-test")
    assert ph.create_plugin("quiet-for-this-test", "x").plug_id == "x"
    assert set(ph.PLUGIN_REGISTRY.names()) - registry_names == {"quiet-for-this-test"}
    with pytest.raises(KeyError, match=r"plugin name is 'quiet-for-this'.*Did you mean 'quiet-for-this-test'"):
        ph.create_plugin("quiet-for-this")


def test_a_plugin_adds_exceptions_that_leave() -> None:
    trainer, plugin = make_trainer(), Quiet("a")
    trainer.register_plugin(plugin)
    plugin.append_train_exceptions(KeyError)
    plugin.append_test_exceptions(OSError)
    assert (trainer.train_exceptions, trainer.test_exceptions) == ([KeyError], [OSError])
