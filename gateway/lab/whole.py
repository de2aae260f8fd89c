"""A file is whole or as it was: it is written beside its place."""

import os
from pathlib import Path


def write_whole(path: Path, body: bytes) -> None:
    """Write and rename. Raises OSError naming `path` where the disk refuses; then nothing has changed."""
    fresh = path.with_name(f".{path.name}.part")
    try:
        fresh.write_bytes(body)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
