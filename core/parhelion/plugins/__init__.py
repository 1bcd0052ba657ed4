"""Plugins: what extends a run without being the model."""

from ._mover import BatchMover as BatchMover
from ._plugin import PLUGIN_REGISTRY as PLUGIN_REGISTRY
from ._plugin import Plugin as Plugin
from ._plugin import UniquePluginOverrides as UniquePluginOverrides
from ._plugin import create_plugin as create_plugin
from ._protocols import ModelView as ModelView
from ._protocols import StateView as StateView
from ._protocols import TrainerView as TrainerView
from ._table import PluginTable as PluginTable
