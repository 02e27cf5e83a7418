"""requirements.txt and requirements-dev.txt pin what pyproject.toml asks for, and nothing else (`make lock`)."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = canonicalize_name(PROJECT["name"])
EXTRAS = {"requirements.txt": ("postgres",), "requirements-dev.txt": ("postgres", "dev", "sam2")}
NOT_IN_THE_FILE = {"sam2"}
"""Needs a command of its own, since its build asks for torch: see the Makefile. pyproject.toml has its version."""
PYTHONS = ("3.11", "3.12")

each_file = pytest.mark.parametrize("name", EXTRAS)


@dataclass(frozen=True)
class Pin:
    """One line of a requirements file.

    Attributes:
        requirement: the package with its version and marker.
        asked_by: canonical names of the packages that need it.
    """

    requirement: Requirement
    asked_by: frozenset[str]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        (specifier,) = self.requirement.specifier
        return specifier.version

    def holds_for(self, environment: Mapping[str, str]) -> bool:
        return self.requirement.marker is None or self.requirement.marker.evaluate(dict(environment))


def read_pins(name: str) -> list[Pin]:
    pins = []
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement, _, comment = line.partition("  # via ")
            asked_by = frozenset(canonicalize_name(each.split()[0]) for each in comment.split(", "))
            pins.append(Pin(Requirement(requirement), asked_by))
    return pins


def wanted(extras: Sequence[str]) -> list[Requirement]:
    """What pyproject.toml asks for and the file of these extras has to pin."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [each for each in map(Requirement, lines) if each.name not in NOT_IN_THE_FILE]


@each_file
@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_is_satisfied_by_exactly_one_pin(name: str, python: str) -> None:
    environment: dict[str, Any] = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    pins = [pin for pin in read_pins(name) if pin.holds_for(environment)]
    for requirement in wanted(EXTRAS[name]):
        versions = [pin.version for pin in pins if pin.name == canonicalize_name(requirement.name)]
        assert len(versions) == 1, f"{requirement}: {name} has {versions}; make lock"
        assert requirement.specifier.contains(versions[0]), f"{requirement}: {name} has {versions[0]}; make lock"
    assert len({pin.name for pin in pins}) == len(pins), "a package is pinned twice"


@each_file
def test_each_pin_is_asked_for(name: str) -> None:
    pins = {pin.name: pin for pin in read_pins(name)}
    asked_by_us = {pin.name for pin in pins.values() if OURS in pin.asked_by}
    assert asked_by_us == {canonicalize_name(each.name) for each in wanted(EXTRAS[name])}, "make lock"
    reached = {OURS, *NOT_IN_THE_FILE} if "sam2" in EXTRAS[name] else {OURS}
    while more := {pin.name for pin in pins.values() if pin.asked_by & reached} - reached:
        reached |= more
    assert set(pins) <= reached, f"{set(pins) - reached} are asked for by nothing; make lock"


def test_both_files_pin_the_same_versions() -> None:
    developers = {pin.name: str(pin.requirement) for pin in read_pins("requirements-dev.txt")}
    for pin in read_pins("requirements.txt"):
        assert developers.get(pin.name) == str(pin.requirement), "make lock"


@each_file
def test_files_hold_versions_and_nothing_else(name: str) -> None:
    """No index, no folder of wheels, no path, no extra: pip takes the files as constraints from any index."""
    for line in (ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^#]+)?  # via [\w ,.()-]+", line), line
    assert "://" not in (ROOT / name).read_text()


def test_a_package_without_a_pin_has_its_version_in_pyproject() -> None:
    lines = [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for requirement in lines:
        if requirement.name in NOT_IN_THE_FILE:
            assert [each.operator for each in requirement.specifier] == ["=="], requirement


def test_make_installs_nothing_without_the_pins() -> None:
    """But for what has its version beside it; Label Studio, lock and audit have environments of their own."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    installs = re.findall(r"^\t.*\$\(BIN\)/python \$\(PIP\) install (.*)$", makefile, re.MULTILINE)
    assert len(installs) == 4
    for install in installs:
        if "--no-deps" in install:
            packages = install.replace("--no-deps", "").split()
            assert all("==" in package for package in packages), install
        else:
            assert re.search(r"--constraint requirements(-dev)?\.txt", install), install


def test_what_is_installed_is_what_is_pinned() -> None:
    for pin in read_pins("requirements-dev.txt"):
        if pin.holds_for(default_environment()):  # type: ignore[arg-type]
            installed = metadata.version(pin.name)
            assert Version(installed).public == pin.version, f"{pin.name} {installed} is installed: make install"
