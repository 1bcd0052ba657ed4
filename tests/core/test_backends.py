"""A backend is found by its name, the environment's, or by being the only one; every failure says what to do."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
import sys
from types import ModuleType

import pytest

import parhelion as ph
from parhelion.errors import BackendNotFoundError, InvalidTypeError, ParhelionError

COMPLETE = "Trainer = Model = LossModel = create_dataloader = create_sampler = None\n"


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch) -> None:
    monkeypatch.delenv("PARHELION_BACKEND", raising=False)


@pytest.fixture
def frameworks(monkeypatch):
    """Return what makes exactly the given frameworks look installed."""

    def install(*names: str) -> None:
        for name in ("torch", "jax"):
            module = ModuleType(name) if name in names else None
            if module is not None:
                module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """Return what puts a distribution with a backend onto the path."""
    before = set(sys.modules)

    def publish(name: str, source: str = COMPLETE, *, target: str = "", distribution: str = "") -> None:
        package = f"fake_{name}"
        folder = tmp_path / (distribution or package)
        info = folder / f"{distribution or package}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[parhelion.backends]\n{name} = {target or package}\n")
        monkeypatch.syspath_prepend(folder)

    yield publish
    for name in set(sys.modules) - before:
        if name.startswith("fake_"):
            del sys.modules[name]


def others() -> list[str]:
    """Return the names that distributions on this machine declare, beside our own."""
    points = importlib.metadata.entry_points(group="parhelion.backends")
    return [point.name for point in points if point.name not in ("torch", "jax")]


@pytest.mark.parametrize("names", [[], ["jax"], ["torch"], ["jax", "torch"]])
def test_a_backend_of_ours_is_available_when_its_framework_is_installed(frameworks, names) -> None:
    frameworks(*names)
    assert ph.available_backends() == sorted([*names, *others()])


def test_a_framework_in_memory_without_a_spec_counts(monkeypatch, frameworks) -> None:
    frameworks()
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    assert "jax" in ph.available_backends()


def test_a_third_party_is_available_and_loads_without_being_listed_anywhere_here(frameworks, third_party) -> None:
    frameworks("torch")
    third_party("abacus")
    assert {"abacus", "torch"} <= set(ph.available_backends())
    assert "fake_abacus" not in sys.modules
    assert ph.load_backend("abacus").__name__ == "fake_abacus"


def test_the_environment_chooses_when_the_argument_does_not(frameworks, third_party, monkeypatch) -> None:
    frameworks("torch", "jax")
    third_party("abacus")
    third_party("sundial")
    monkeypatch.setenv("PARHELION_BACKEND", "abacus")
    assert ph.load_backend().__name__ == "fake_abacus"
    assert ph.load_backend("sundial").__name__ == "fake_sundial"
    monkeypatch.setitem(os.environ, "PARHELION_BACKEND", "sundial")
    assert ph.load_backend().__name__ == "fake_sundial"


def test_the_only_one_installed_needs_no_choice(frameworks, third_party, monkeypatch) -> None:
    frameworks()
    third_party("abacus")
    monkeypatch.setenv("PARHELION_BACKEND", "")
    assert ph.load_backend().__name__ == "fake_abacus"


def test_several_without_a_choice_are_listed(frameworks, third_party) -> None:
    frameworks("torch", "jax")
    third_party("abacus")
    with pytest.raises(
        BackendNotFoundError,
        match=r"3 backends are installed \(abacus, jax, torch\) and none was chosen; expected a name\. Pass one, as in "
        r"load_backend\('abacus'\), or set the environment variable PARHELION_BACKEND\.",
    ):
        ph.load_backend()


def test_none_at_all_names_the_extras(frameworks) -> None:
    frameworks()
    with pytest.raises(
        BackendNotFoundError,
        match=r"no backend is installed; expected one\. .*'parhelion\[torch\]'.*'parhelion\[jax\]'",
    ):
        ph.load_backend()


@pytest.mark.parametrize("name", ["toch", "Torch", "parhelion_torch"])
def test_an_unknown_name_gets_the_near_one(name) -> None:
    with pytest.raises(
        BackendNotFoundError,
        match=rf"name of the backend is '{name}'; expected one of .*'jax', .*'torch'.*\. Did you mean 'torch'\?",
    ):
        ph.load_backend(name)


def test_an_unknown_name_of_the_environment_says_where_it_comes_from(monkeypatch, third_party) -> None:
    third_party("abacus")
    monkeypatch.setenv("PARHELION_BACKEND", "quill")
    with pytest.raises(
        BackendNotFoundError,
        match=r"PARHELION_BACKEND is 'quill'; expected one of 'abacus', .*'jax'.* A package adds one with an entry "
        r"point of the group 'parhelion\.backends'",
    ) as caught:
        ph.load_backend()
    assert "Did you mean" not in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, ParhelionError)


def test_a_name_that_is_no_string_is_refused() -> None:
    with pytest.raises(InvalidTypeError, match=r"name of the backend is 5; expected a string such as 'torch', or None"):
        ph.load_backend(5)


@pytest.mark.parametrize(("name", "missing"), [("torch", "torch"), ("jax", "(jax|jaxlib|optax)")])
def test_a_known_backend_without_its_framework_names_the_extra(frameworks, monkeypatch, name, missing) -> None:
    frameworks()
    for module in [each for each in sys.modules if each.startswith(f"parhelion_{name}")]:
        monkeypatch.delitem(sys.modules, module)
    before = dict(sys.modules)
    with pytest.raises(
        BackendNotFoundError,
        match=rf"backend '{name}' needs {missing}, which is not installed; install it with: pip install "
        rf"'parhelion\[{name}\]'",
    ) as caught:
        ph.load_backend(name)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    for module in set(sys.modules) - set(before):
        if module.startswith(f"parhelion_{name}"):
            del sys.modules[module]


def test_a_third_party_that_cannot_be_imported_names_its_distribution_and_chains(third_party) -> None:
    third_party("abacus", "import a_library_that_is_not_there\n")
    with pytest.raises(
        BackendNotFoundError,
        match=r"backend 'abacus' of the distribution 'fake_abacus' cannot be imported \(fake_abacus\): "
        r"ModuleNotFoundError: No module named 'a_library_that_is_not_there'\. Reinstall or uninstall 'fake_abacus'",
    ) as caught:
        ph.load_backend("abacus")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_what_is_no_module_is_refused(third_party) -> None:
    third_party("abacus", COMPLETE, target="fake_abacus:Trainer")
    with pytest.raises(
        BackendNotFoundError,
        match=r"backend 'abacus' of the distribution 'fake_abacus' is None; expected a module\. Its entry point should "
        r"be 'fake_abacus', without an attribute",
    ):
        ph.load_backend("abacus")


def test_what_lacks_a_name_that_every_backend_has_is_refused_by_that_name(third_party) -> None:
    third_party("abacus", "Trainer = Model = create_sampler = None\n")
    with pytest.raises(
        BackendNotFoundError,
        match=r"backend 'abacus' \(fake_abacus\) lacks LossModel, create_dataloader; expected a module with .*Trainer",
    ):
        ph.load_backend("abacus")


def test_two_distributions_with_one_name_are_both_named(third_party) -> None:
    third_party("abacus", distribution="beads")
    third_party("abacus", distribution="pebbles", target="fake_abacus_two")
    with pytest.raises(
        BackendNotFoundError, match=r"backend 'abacus' is declared by 'beads' and 'pebbles'; expected one of them"
    ):
        ph.load_backend("abacus")


def test_a_third_party_cannot_take_the_name_of_ours(frameworks, third_party) -> None:
    frameworks()
    third_party("torch")
    assert "torch" not in ph.available_backends()
