"""Where the lab's files are, if the command does not say."""

import os
from pathlib import Path

from rich.console import Console

from gateway.settings import Settings, read


def settings() -> Settings:
    """The process settings."""
    return read(os.environ)


def home() -> Path:
    """The folder of tasks/, prompts/ and models.toml."""
    return settings().home_path


def task_folder(task: str) -> Path:
    """The task's own folder."""
    return home() / "tasks" / task


def sources_or_none(given: Path | None) -> Path | None:
    """The folder of public sources: as given, or GATEWAY_DATA_DIR's."""
    return given or (Path(found) if (found := settings().data_dir) else None)


def sources_at(given: Path | None) -> Path:
    """The same where there must be one. Raises LabError."""
    from gateway.lab.rows import LabError

    if (found := sources_or_none(given)) is None or not found.is_dir():
        raise LabError(f"there is no folder of public sources at {found}: give --sources or set GATEWAY_DATA_DIR")
    return found


def corpus_at(task: str, given: Path | None) -> Path:
    """Our own corpus."""
    return given or task_folder(task) / "corpus.jsonl.gz"


def adapter_at(task: str, given: Path | None) -> Path:
    """The adapter's folder."""
    return given or task_folder(task) / "adapter"


def base_at(given: Path | None) -> Path:
    """The base model's folder; the fetched one is fetched where it is absent."""
    from gateway.local.fetch import fetch_model

    return given or fetch_model(settings().cache_path, Console(stderr=True))
