import functools
import os
import sys

import pytest

from parhelion.errors import DuplicateNameError, InvalidTypeError, InvalidValueError, UnknownNameError
from parhelion.registry import Registry, update_all_registries


def crop(size):
    return size


class Model:
    pass


def test_every_spelling_of_the_decorator_registers_and_returns_the_object():
    registry = Registry("thing")

    @registry
    def first(): ...

    @registry.register
    def second(): ...

    @registry.register()
    def third(): ...

    @registry.register(name="4th", aliases=("fourth", "IV"))
    def fourth(): ...

    @registry(name="5th")
    class Fifth: ...

    assert registry.register(crop) is crop
    assert registry.names() == ["4th", "5th", "IV", "crop", "first", "fourth", "second", "third"]
    assert [registry.get(name) for name in ("first", "second", "third", "4th", "IV")] == [
        first,
        second,
        third,
        fourth,
        fourth,
    ]
    assert registry.get("5th") is Fifth


def test_a_registry_tells_what_it_has():
    registry = Registry("thing")
    registry.register(crop)
    assert "crop" in registry
    assert "Model" not in registry
    assert list(registry) == ["crop"]
    assert len(registry) == 1
    assert repr(registry) == "Registry('thing', ['crop'])"


def test_registering_the_same_object_again_changes_nothing():
    registry = Registry("thing")
    registry.register(crop)
    registry.register(crop, aliases=["cut"])
    assert registry.names() == ["crop", "cut"]


def test_a_name_that_is_taken_registers_none_of_the_names():
    registry = Registry("model")
    registry.register(Model)
    with pytest.raises(DuplicateNameError, match=r"model name 'Model' is taken by .*Model.*Register under another"):
        registry.register(crop, name="crop", aliases=["cut", "Model"])
    assert registry.names() == ["Model"]


def test_an_unknown_name_is_answered_with_near_ones():
    registry = Registry("dataset")
    with pytest.raises(UnknownNameError, match=r"^dataset name is 'x'; expected one of none, the registry is empty\."):
        registry.get("x")
    registry.register(crop, name="CIFAR10", aliases=["MNIST"])
    with pytest.raises(UnknownNameError, match=r"expected one of CIFAR10, MNIST\. Did you mean 'CIFAR10'\?"):
        registry.get("CIFAR100")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'MNIST'\? A name exists once the module"):
        registry.get("mnist")


def test_a_child_is_asked_first_and_falls_back_to_its_parent():
    parent = Registry("thing")
    child = Registry("thing", parent=parent)
    parent.register(crop)
    parent.register(Model)
    child.register(Model, name="crop")
    assert child.get("crop") is Model
    assert child.get("Model") is Model
    assert parent.get("crop") is crop
    assert "Model" in child
    assert child.names() == ["Model", "crop"]
    assert len(child) == 2
    with pytest.raises(UnknownNameError, match="expected one of Model, crop"):
        child.get("other")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda r: r.register("crop"),
            InvalidTypeError,
            r"a thing to register is 'crop'; expected a class or a fun",
        ),
        (
            lambda r: r.register(crop, name=""),
            InvalidValueError,
            r"name of a thing is ''; expected a non-empty str",
        ),
        (
            lambda r: r.register(crop, name=3),
            InvalidValueError,
            r"name of a thing is 3; expected a non-empty str",
        ),
        (
            lambda r: r.register(functools.partial(crop, 2)),
            InvalidValueError,
            r"name of a thing is ''; expected",
        ),
        (
            lambda r: r.register_lazy("x", "module"),
            InvalidValueError,
            r"lazy target of 'x' is 'module'; expected",
        ),
        (
            lambda r: r.register_lazy("", "a:b"),
            InvalidValueError,
            r"name of a thing is ''; expected a non-empty",
        ),
    ],
)
def test_what_cannot_be_an_entry_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(Registry("thing"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A fresh folder on the path, whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_lazy_entry_is_imported_when_it_is_asked_for(folder):
    (folder / "lazy_things.py").write_text("def build(): ...\n")
    registry = Registry("thing")
    registry.register_lazy("build", "lazy_things:build")
    registry.register_lazy("build", "lazy_things:build")
    assert "build" in registry
    assert registry.names() == ["build"]
    assert "lazy_things" not in sys.modules
    assert registry.get("build").__module__ == "lazy_things"
    assert registry.get("build") is registry.get("build")


def test_the_module_of_a_lazy_entry_may_register_it_itself(folder):
    registry = Registry("thing")
    sys.modules["lazy_registry"] = registry
    (folder / "lazy_self.py").write_text("import lazy_registry\n@lazy_registry.register\ndef build(): ...\n")
    registry.register_lazy("build", "lazy_self:build")
    assert registry.get("build") is sys.modules["lazy_self"].build
    assert registry.names() == ["build"]


def test_a_lazy_name_is_taken_too():
    registry = Registry("thing")
    registry.register_lazy("crop", "elsewhere:crop")
    with pytest.raises(DuplicateNameError, match="thing name 'crop' is taken by 'elsewhere:crop'"):
        registry.register(crop)
    with pytest.raises(DuplicateNameError, match="thing name 'crop' is taken by 'elsewhere:crop'"):
        registry.register_lazy("crop", "another:crop")


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_all_modules_below_a_folder_are_imported_in_order(folder):
    write(
        folder,
        "proj_a/models/cnn.py",
        "proj_a/data.py",
        "proj_a/_draft.py",
        "proj_a/.x/y.py",
        "proj_a/__init__.py",
    )
    assert update_all_registries(folder / "proj_a", import_prefix="proj_a") == [
        "proj_a.data",
        "proj_a.models.cnn",
    ]
    assert {"proj_a.data", "proj_a.models.cnn"} <= set(sys.modules)
    assert "proj_a._draft" not in sys.modules


def test_a_prefix_may_end_with_a_dot_and_sub_folders_be_left_out(folder):
    write(folder, "proj_b/sub/deep.py", "proj_b/top.py")
    assert update_all_registries(folder / "proj_b", recurse=False, import_prefix="proj_b.") == ["proj_b.top"]
    assert update_all_registries(folder, recurse=False) == []


def test_without_a_prefix_the_folder_itself_is_where_modules_are(folder):
    write(folder, "proj_c_things.py")
    assert update_all_registries(str(folder)) == ["proj_c_things"]


def test_a_module_written_a_moment_ago_is_found(folder):
    write(folder, "proj_g/first.py")
    update_all_registries(folder / "proj_g", import_prefix="proj_g")
    before = (folder / "proj_g").stat()
    write(folder, "proj_g/second.py")
    os.utime(folder / "proj_g", ns=(before.st_atime_ns, before.st_mtime_ns))  # as on a coarse clock
    assert "proj_g.second" in update_all_registries(folder / "proj_g", import_prefix="proj_g")


def test_registrations_run_when_their_modules_are_imported(folder):
    (folder / "proj_d").mkdir()
    registry = Registry("model")
    sys.modules["proj_d_registry"] = registry
    (folder / "proj_d" / "net.py").write_text("from proj_d_registry import register\n@register\nclass Net: ...\n")
    update_all_registries(folder / "proj_d", import_prefix="proj_d")
    assert registry.names() == ["Net"]


def test_a_module_that_fails_is_named_with_its_file_and_the_cause(folder):
    (folder / "proj_e").mkdir()
    (folder / "proj_e" / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ImportError, match=r"importing 'proj_e\.broken' .* \(ZeroDivisionError: division") as caught:
        update_all_registries(folder / "proj_e", import_prefix="proj_e")
    assert str(folder / "proj_e" / "broken.py") in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_wrong_prefix_is_named(folder):
    write(folder, "proj_f/net.py")
    with pytest.raises(ImportError, match=r"Check import_prefix \('nowhere'\)"):
        update_all_registries(folder / "proj_f", import_prefix="nowhere")


def test_a_module_that_shares_its_name_with_another_is_not_passed_over(folder):
    write(folder, "random.py")
    with pytest.raises(ImportError, match=r"importing 'random' .* gave .*; expected .*random\.py\. Another module has"):
        update_all_registries(folder)


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"root of the modules to import is '.*nowhere'; expected an existing"):
        update_all_registries(tmp_path / "nowhere")
