"""Installed versions of the packages that this one needs or can use, from their own metadata."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llada.system.fact import Fact

DISTRIBUTION = "llada-trainer"
# Optional parts by the name of their module: distribution, and the extra of ours that installs it.
OPTIONAL_PARTS = {
    "peft": ("peft", "lora"),
    "bitsandbytes": ("bitsandbytes", "qlora"),
    "lm_eval": ("lm-eval", "eval"),
    "transformers": ("transformers", None),
}


_IMPORTED_AS = {"pillow": "PIL"}


@dataclass(frozen=True)
class Package:
    """A distribution that is needed or optional, and its installed version."""

    distribution: str
    required: str
    """The versions that this package works with, like ">=2.11,<3"; empty for any."""
    version: str | None
    """The installed version; None if it is not installed."""
    is_older: bool = False
    """Whether it is below the range."""
    is_newer: bool = False

    @property
    def requirement(self) -> str:
        """The requirement as pip takes it."""
        return f"{self.distribution}{self.required}"

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        return _IMPORTED_AS.get(self.distribution, self.distribution.replace("-", "_"))


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, without importing it; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def required_packages() -> list[Package]:
    """List the packages that must be installed; empty without our own metadata, as in a bare source tree."""
    return [look_up(name, required) for name, required in _requirements(extra="").items()]


def optional_package(module: str) -> tuple[Package, str]:
    """Return an optional package, and what pip installs it by."""
    distribution, extra = OPTIONAL_PARTS[module]
    required = _requirements(extra).get(distribution, "") if extra else ""
    return look_up(distribution, required), f"{DISTRIBUTION}[{extra}]" if extra else distribution


def look_up(distribution: str, required: str, version: str | None = None) -> Package:
    """Compare the installed version of a distribution with the versions required.

    Args:
        version: the installed version; if left out, from its metadata.
    """
    version = version or installed_version(distribution)
    if version is None or not required:
        return Package(distribution, required, version)
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    specifiers = SpecifierSet(required)
    if specifiers.contains(version, prereleases=True):
        return Package(distribution, required, version)
    lowest = [Version(one.version.rstrip(".*")) for one in specifiers if one.operator in (">=", ">", "==", "~=")]
    is_older = any(Version(version) < low for low in lowest)
    return Package(distribution, required, version, is_older, not is_older)


def _requirements(extra: str) -> dict[str, str]:
    """Return the versions of each distribution that we require with an extra, or without any."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # the requirements cannot even be read without it
        return {"packaging": ""}
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    found = [Requirement(line) for line in lines]
    return {
        re.sub(r"[-_.]+", "-", one.name).lower(): str(one.specifier)
        for one in found
        if one.marker is None or one.marker.evaluate({"extra": extra})
    }


def packages_fact(packages: list[Package], failures: Mapping[str, str]) -> Fact:
    """Judge the packages that are needed in addition to torch.

    Args:
        failures: why a module cannot be imported, by name.
    """
    values: dict[str, Any] = {"versions": {one.distribution: one.version for one in packages}, "failures": failures}
    bad = [one for one in packages if one.version is None or one.is_older or one.module in failures]
    if bad:
        reasons = [f"{one.distribution} ({_wrong(one, failures)})" for one in bad]
        again = " ".join(f"'{one.requirement}'" for one in bad)
        advice = f"Needed and not in order: {', '.join(reasons)}: pip install --force-reinstall {again}."
        return Fact("dependencies", "problem", f"{len(bad)} of {len(packages)} not in order", advice, values)
    newer = [f"{one.distribution} {one.version} (tested: {one.required})" for one in packages if one.is_newer]
    if newer:
        advice = f"Newer than what this version was tested with: {', '.join(newer)}; if they fail, install those."
        return Fact("dependencies", "note", f"{len(newer)} of {len(packages)} newer than tested", advice, values)
    if not packages:
        return Fact("dependencies", "note", "not known: llada-trainer itself is not installed", values=values)
    return Fact("dependencies", "fine", f"all {len(packages)} installed", values=values)


def _wrong(package: Package, failures: Mapping[str, str]) -> str:
    if package.version is None:
        return "not installed"
    return f"{package.version} is too old" if package.is_older else failures[package.module]


def part_fact(module: str, package: Package, install: str, failure: str | None) -> Fact:
    """Judge an optional part.

    Args:
        install: the argument of `pip install`.
        failure: why it cannot be imported; empty if it can, None if that was not tried.
    """
    values = {
        "version": package.version,
        "required": package.required,
        "imports": None if failure is None or package.version is None else not failure,
        "failure": failure or None,
        "install": install,
    }
    command = f"pip install '{install}'"
    if package.version is None:
        return Fact(module, "fine", f"not installed: {command}", values=values)
    if failure:
        advice = (
            f"{package.distribution} {package.version} is installed but cannot be imported ({failure}): "
            f"{again(command)}, or uninstall it."
        )
        return Fact(module, "note", f"{package.version}, cannot be imported", advice, values)
    if package.is_older or package.is_newer:
        advice = f"{package.distribution} {package.version} is outside {package.required}, which works here: {command}."
        return Fact(module, "note", f"{package.version}, outside {package.required}", advice, values)
    return Fact(module, "fine", package.version, values=values)


def again(command: str) -> str:
    """Turn a `pip install` command into one that replaces what is installed."""
    return command.replace("pip install", "pip install --force-reinstall")
