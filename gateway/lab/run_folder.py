"""A run's folder is whole or absent: it is written beside its place, and a failed run leaves what was there before."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.lab.rows import LabError


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """A fresh folder to write to; it becomes `out` when the block ends well. Raises LabError where the disk refuses."""
    fresh, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        fresh.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise LabError(f"{error.filename or out}: {error.strerror or error}; {out} is as it was") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
