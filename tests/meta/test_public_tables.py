"""The public tables are exact, and hold every name that is promised."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

import pytest

torch_backend = pytest.importorskip("parhelion_torch")
jax_backend = pytest.importorskip("parhelion_jax")

ROOMS = ["parhelion"] + [
    f"parhelion.{room}"
    for room in ("checkpoint", "data", "plugins", "processes", "sampling", "testing", "tracking", "training")
]
PACKAGES = [*ROOMS, "parhelion_torch", "parhelion_jax"]
both = pytest.mark.parametrize("backend", [torch_backend, jax_backend], ids=["torch", "jax"])

# Every backend has these.
BACKEND = """
    create_dataloader ResumableSampler ResumableRandomSampler ResumableSequentialSampler ResumableDistributedSampler
    ResumableSamplerType SAMPLER_REGISTRY create_sampler Trainer Model LossModel
    ResumableWeightedSampler ResumableMixtureSampler ResumableSubsetSampler ResumableConcatSampler
    ResumableBucketSampler ResumableCurriculumSampler ResumableFunctionSampler
    MODEL_REGISTRY OPTIMIZER_REGISTRY SCHEDULE_REGISTRY LOSS_REGISTRY METRIC_REGISTRY
    create_model create_optimizer create_schedule create_loss create_metric
"""

# What the reference pages name, by where it must be found.
PROMISED = {
    "parhelion": """
        DatasetSplit DataLoaderParams Dataset DataModule DATASET_REGISTRY COLLATE_FN_REGISTRY create_dataset
        create_collate_fn TrainingUnit TrainingState get_trainer_safe_types_for_load
        register_trainer_types_for_safe_load find_last_checkpoint Plugin UniquePluginOverrides PLUGIN_REGISTRY
        create_plugin Registry get_default_seed update_all_registries sample_rng sample_scope schedules metrics
        load_backend available_backends
    """,
    "parhelion.data": """
        DatasetSplit DataLoaderParams Dataset DataModule DATASET_REGISTRY COLLATE_FN_REGISTRY create_dataset
        create_collate_fn MapDatasetProtocol DataLoaderProtocol SizedIterable
    """,
    "parhelion.sampling": """
        ResumableSampler ResumableRandomSampler ResumableSequentialSampler ResumableDistributedSampler
        ResumableSamplerType SAMPLER_REGISTRY create_sampler Position
        ResumableWeightedSampler ResumableMixtureSampler ResumableSubsetSampler ResumableConcatSampler
        ResumableBucketSampler ResumableCurriculumSampler ResumableFunctionSampler
    """,
    "parhelion.training": "TrainingUnit TrainingState Plan Model Trainer",
    "parhelion.checkpoint": """
        get_trainer_safe_types_for_load register_trainer_types_for_safe_load find_last_checkpoint
    """,
    "parhelion.plugins": "Plugin UniquePluginOverrides PLUGIN_REGISTRY create_plugin",
    "parhelion.registry": "Registry update_all_registries",
    "parhelion.testing": """
        PlacementContract RandomnessContract WorldContract ArraysContract LoaderContract TrainerContract ResumeContract
        BackendCase check_loader_resumes check_sampler_resumes
    """,
    "parhelion_torch": f"{BACKEND} CUDAPlugin",
    "parhelion_jax": f"""
        {BACKEND} DevicePlugin connect DataLoader InMemoryDataLoader cycled_minibatches prefetching_map sharding_map
        MapDatasetProtocol DataLoaderProtocol SizedIterable
    """,
}

TRAINER_ARGUMENTS = [
    "run_name",
    "train_unit",
    "total_steps",
    "valid_frequency",
    "chkpt_frequency",
    "print_frequency",
    "accumulation_steps",
    "enable_cudnn_benchmark",
    "enable_deterministic",
    "early_stop_cycles",
    "use_cpu",
    "gpus",
    "random_seed",
    "enable_tensorboard",
    "enable_file_logging",
    "enable_progress_bar",
    "chkpt_root",
    "log_path",
    "run_path",
    "src_root",
    "import_prefix",
    "print_banner",
]

MODEL_MEMBERS = [
    "setup",
    "train",
    "eval",
    "train_step",
    "valid_step",
    "test_step",
    "on_training_start",
    "on_training_end",
    "on_training_epoch_start",
    "on_training_epoch_end",
    "on_training_batch_start",
    "on_training_batch_end",
    "on_validation_start",
    "on_validation_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_testing_start",
    "on_testing_end",
    "on_testing_batch_start",
    "on_testing_batch_end",
    "have_metrics_improved",
    "should_training_stop",
    "should_save_checkpoint",
    "load_for_testing",
    "state_dict",
    "load_state_dict",
    "trained_state_dict",
    "append_metadata_to_chkpt_name",
    "save_name",
    "trainer",
    "device",
    "rank",
    "is_distributed",
]

PLUGIN_MEMBERS = [
    "unique_overrides",
    "is_distributed",
    "map_loc",
    "device",
    "rank",
    "trainer",
    "configure_trainer",
    "configure_model",
    "setup",
    "on_training_start",
    "process_training_batch",
    "on_training_end",
    "on_validation_start",
    "process_validation_batch",
    "on_validation_end",
    "should_training_stop",
    "load_state_dict",
    "state_dict",
    "on_testing_start",
    "process_testing_batch",
    "on_testing_end",
]


@pytest.mark.parametrize(("package", "names"), [(p, n) for p, names in PROMISED.items() for n in [names.split()]])
def test_every_promised_name_is_there(package, names) -> None:
    module = importlib.import_module(package)
    assert [name for name in names if not hasattr(module, name)] == []


@both
def test_the_trainer_has_every_argument_of_the_page_in_its_order(backend) -> None:
    parameters = list(inspect.signature(backend.Trainer).parameters)
    assert parameters[: len(TRAINER_ARGUMENTS)] == TRAINER_ARGUMENTS


@both
def test_models_and_plugins_have_every_member_of_the_pages(backend) -> None:
    import parhelion

    assert [name for name in MODEL_MEMBERS if not hasattr(backend.Model, name)] == []
    assert [name for name in PLUGIN_MEMBERS if not hasattr(parhelion.Plugin, name)] == []
    for name in [
        "model",
        "datamodule",
        "local_rank",
        "rank",
        "gpu_ids",
        "train_exceptions",
        "test_exceptions",
        "plugins",
        "queue",
    ]:
        assert isinstance(inspect.getattr_static(backend.Trainer, name), property)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_table_holds_reexports_and_nothing_else(package) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    table: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname is not None, f"{alias.name} is imported without `as`"
                if not alias.asname.startswith("_"):
                    table.add(alias.asname)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in getattr(target, "elts", [target])]
            assert all(isinstance(name, ast.Name) and name.id.startswith("__") for name in names)
        else:
            assert isinstance(node, (ast.Expr, ast.Try, ast.If)), ast.dump(node)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not (isinstance(value, ModuleType) and name not in table)
    }
    assert public == table


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_later_is_what_type_checkers_see(package) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    seen = {
        alias.asname: f"{package}.{node.module}"
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    later = set(dir(module)) - set(vars(module)) if "__getattr__" in vars(module) else set()
    assert later == set(seen)
    for name, home in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = module.no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package) -> None:
    module = importlib.import_module(package)
    silent = []
    for name, value in vars(module).items():
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not inspect.getdoc(value):
            silent.append(name)
        if inspect.isclass(value) and value.__module__.startswith("parhelion"):
            silent += [
                f"{name}.{member}"
                for member, function in vars(value).items()
                if inspect.isfunction(function) and not member.startswith("_") and not inspect.getdoc(function)
            ]
    assert silent == []


def test_library_code_neither_prints_nor_asserts() -> None:
    found = []
    for package in ("parhelion", "parhelion_torch", "parhelion_jax"):
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, f"{package}."):
            spec = importlib.util.find_spec(info.name)
            assert spec is not None
            for node in ast.walk(ast.parse(Path(str(spec.origin)).read_text())):
                is_print = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
                if is_print or isinstance(node, ast.Assert):
                    found.append(f"{info.name}:{node.lineno}")
    assert found == []


def test_the_loop_fits_its_screen() -> None:
    source = Path(str(importlib.import_module("parhelion.training._loop").__file__)).read_text()
    assert source.count("\n") < 150
