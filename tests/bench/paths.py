"""The four ways through the gateway that are measured, and the requests that take them."""

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import cycle, islice

import asyncpg  # type: ignore[import-untyped]
import msgspec
from msgspec import Struct

from bench import messages
from bench.driver import Target
from bench.ground import TASK, Ground

_KEPT = 64
"""Messages that are asked again and again where the cache is to answer."""


class Path(Struct, frozen=True):
    """`target_per_s` is the design's for one core; `condition` says in SQL which rows of the ledger took the path, and
    `status` what its callers hear.
    """

    name: str
    target_per_s: int
    condition: str
    delay_ms: float = 0
    status: int = 200


HIT = Path("cache hit", 2500, "cache = 'hit'")
PREFILTER = Path("prefilter decides", 1500, "stage = 'prefilter' AND cache = 'miss'")
LLM = Path("LLM decides, 0 ms", 700, "stage = 'llm' AND cache = 'miss'")
SLOW_LLM = Path("LLM decides, 20 ms", 700, "stage = 'llm' AND cache = 'miss'", delay_ms=20)
REFUSED = Path("quota refuses (429)", 4000, "false", status=429)
FLOOR = Path("bare Litestar handler", 0, "true")
PATHS = (HIT, PREFILTER, LLM, REFUSED)
"""Those that one gateway can take: `SLOW_LLM` needs another model, `FLOOR` no gateway."""


class Requests:
    """Bodies for the paths. A message that a cheap stage or the LLM is to decide is never asked twice."""

    def __init__(self) -> None:
        clear, open_ = _bodies(messages.clear()), _bodies(messages.open_())
        kept = cycle(list(islice(clear, _KEPT)))
        self._of: dict[Path, Iterator[bytes]] = {
            HIT: kept, PREFILTER: clear, LLM: open_, SLOW_LLM: open_, REFUSED: kept, FLOOR: kept,
        }  # fmt: skip

    def of(self, path: Path) -> Iterator[bytes]:
        """The next ones."""
        return self._of[path]


def target(ground: Ground, path: Path, port: int) -> Target:
    """Where a path is asked, and by whom."""
    return Target(port, f"/tasks/{TASK}/invoke", ground.limited_key if path is REFUSED else ground.key)


async def count_on_path(ground: Ground, path: Path, since: datetime) -> int:
    """How many of the runs recorded since then took the path."""
    connection = await asyncpg.connect(ground.database)
    try:
        taken = f"kind = 'invoke' AND {path.condition}"
        return int(
            await connection.fetchval(f"SELECT count(*) FROM inference WHERE received_at >= $1 AND {taken}", since)
        )
    finally:
        await connection.close()


def _bodies(texts: Iterator[str]) -> Iterator[bytes]:
    encode: Callable[[object], bytes] = msgspec.json.Encoder().encode
    return (encode({"input": {"message": text, "sender_role": "customer"}}) for text in texts)
