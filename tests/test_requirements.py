"""What is installed by hash is what the tests passed with, and is no older than what pyproject.toml asks for."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements-hashed.txt").read_text()


def pins(text):
    """Versions by package."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_versions_are_those_of_the_constraints():
    """No version differs from constraints.txt."""
    tested = pins((ROOT / "constraints.txt").read_text())
    assert {name: version for name, version in pins(LOCK).items() if tested.get(name, version) != version} == {}


def test_every_file_has_a_hash():
    """A package without a hash would be refused; no address of an index stands in the file."""
    entries = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", entry, re.MULTILINE) for entry in entries)
    assert "://" not in LOCK


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_what_is_needed_is_locked():
    """Every dependency, and those of the extra of the quick start, stands there in a version that will do."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins(LOCK)
    for line in (*project["dependencies"], *project["optional-dependencies"]["embedded"]):
        needed = Requirement(line)
        assert needed.specifier.contains(locked[needed.name.lower()]), line
