"""The lock files pin what pyproject.toml asks for, hash everything and name no host."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = [*PYPROJECT["build-system"]["requires"], *PYPROJECT["project"]["dependencies"]]
TEST = [*RUN, *PYPROJECT["dependency-groups"]["dev"]]


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ ]+)", lock, re.MULTILINE))


def read_lock(name: str) -> str:
    return (ROOT / "requirements" / name).read_text()


@pytest.mark.parametrize(("name", "wanted"), [("run.txt", RUN), ("test.txt", TEST)])
def test_lock_fits_pyproject(name: str, wanted: list[str]) -> None:
    pinned = pins(read_lock(name))
    requirements = [Requirement(line) for line in wanted]
    stale = [str(r) for r in requirements if not r.specifier.contains(pinned.get(canonicalize_name(r.name), "0"))]
    assert stale == [], "run `make lock`"


@pytest.mark.parametrize("name", ["run.txt", "test.txt"])
def test_every_pin_has_a_hash_and_no_host_is_named(name: str) -> None:
    for entry in re.split(r"^(?=[a-z0-9])", read_lock(name), flags=re.MULTILINE)[1:]:
        assert re.match(r"[a-z0-9.-]+==[^ ]+( ;.+?)? \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry
        assert not re.search(r"://|--index-url|--extra-index-url|--find-links|--trusted-host| @ ", entry), entry


def test_tests_run_on_what_is_served() -> None:
    run, test = pins(read_lock("run.txt")), pins(read_lock("test.txt"))
    assert {name: test.get(name) for name in run} == run
