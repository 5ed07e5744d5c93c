"""The lower bounds of dependencies are the versions that `make test-oldest` tests."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_lower_bounds_are_the_oldest_tested_versions() -> None:
    """Every dependency has one lower bound, equal to its pin in constraints-oldest.txt, and nothing else is pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [Requirement(r) for group in project["optional-dependencies"].values() for r in group]
    bounds: dict[str, set[Version]] = {}
    for requirement in (*map(Requirement, project["dependencies"]), *listed):
        if requirement.name != project["name"]:
            (bound,) = requirement.specifier
            assert bound.operator in (">=", "=="), requirement
            bounds.setdefault(canonicalize_name(requirement.name), set()).add(Version(bound.version))
    pins = re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints-oldest.txt").read_text(), re.MULTILINE)
    assert bounds == {canonicalize_name(name): {Version(version)} for name, version in pins}
