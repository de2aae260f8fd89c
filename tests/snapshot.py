"""Texts that people read, kept in plain files: a change of words is a change that a reviewer sees.

`UPDATE_SNAPSHOTS=1 python -m pytest tests/test_texts.py tests/test_docs.py` writes the files anew; read the diff before
it is committed.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "snapshots"
UPDATING = os.environ.get("UPDATE_SNAPSHOTS") == "1"


def snapshot(name: str, text: str) -> str:
    """What the file said before; with UPDATE_SNAPSHOTS=1, after it was written anew."""
    path = FOLDER / name
    if UPDATING:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    return path.read_text("utf-8")
