"""What the image is made of: every file has a hash, and every version is the one that was tested."""

import re
import tomllib

from stack import ROOT

_PINNED = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
APART = "torch"
"""Installed from PyTorch's own index, under other hashes than PyPI's."""
BUILDS = "setuptools"
"""Builds the package, and is in no list of what is installed."""


def pinned(file: str) -> dict[str, str]:
    """Versions by normalised name."""
    return {normal(name): version for name, version in _PINNED.findall((ROOT / file).read_text("utf-8"))}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_file_of_the_lock_has_a_hash() -> None:
    """pip refuses a file that is not among them."""
    entries = re.split(r"^(?=[\w.-]+==)", (ROOT / "requirements.lock").read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_lock_has_the_versions_that_were_tested() -> None:
    """What is in both is the same in both; what only the lock has is for other systems than those of the tests."""
    locked, tested = pinned("requirements.lock"), pinned("constraints.txt")
    both = locked.keys() & tested.keys()
    assert {name: locked[name] for name in both} == {name: tested[name] for name in both}
    conditional = re.findall(r"^([\w.-]+)==\S+ ; ", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert locked.keys() - tested.keys() <= {BUILDS, *map(normal, conditional)}


def test_the_lock_has_all_that_serving_needs() -> None:
    """The dependencies and the extras of the image, but for torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["local"], *extras["reports"]]
    names = {normal(re.split(r"[\[<>=~ ]", each)[0]) for each in wanted}
    assert names - pinned("requirements.lock").keys() == {APART}


def test_the_image_installs_nothing_else() -> None:
    """Each call of pip either checks hashes or brings no dependency along."""
    calls = re.findall(r"^RUN (pip install .*)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert len(calls) == 3
    assert all("--no-deps" in call for call in calls)
    assert [call for call in calls if "--require-hashes" in call] == [calls[0]]
    assert APART in calls[1]
