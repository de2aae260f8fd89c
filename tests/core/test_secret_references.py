"""Secrets are references."""

from pathlib import Path

import pytest

from gateway.adapters.references import UnresolvedReference, resolve
from gateway.core.problems import InvalidConfig
from gateway.core.registry import load_tariffs

MODEL = """
[m]
kind = "tgi"
urls = ["http://127.0.0.1"]
model_id = "m"
key = "KEY"
[[m.price]]
from = 2026-01-01
input_per_million = "1"
output_per_million = "1"
"""


def test_a_key_in_clear_is_refused_and_never_shown(tmp_path: Path) -> None:
    """models.toml takes `env:` and `file:` only, and the message does not repeat what stood there."""
    (tmp_path / "models.toml").write_text(MODEL.replace("KEY", "hunter2"), "utf-8")
    with pytest.raises(InvalidConfig) as refused:
        load_tariffs(tmp_path)
    assert "a key is a reference" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    (tmp_path / "models.toml").write_text(MODEL.replace("KEY", "env:MODEL_KEY"), "utf-8")
    assert set(load_tariffs(tmp_path)) == {"m"}


def test_references_are_resolved_or_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`env:` reads the environment, `file:` a file; anything else is its own value."""
    monkeypatch.setenv("A_KEY", " secret\n")
    (tmp_path / "key").write_text("secret\n", "utf-8")
    assert resolve("env:A_KEY") == resolve(f"file:{tmp_path / 'key'}") == resolve("secret") == "secret"
    for missing in ("env:NO_SUCH_KEY", "file:/no/such/file"):
        with pytest.raises(UnresolvedReference):
            resolve(missing)
