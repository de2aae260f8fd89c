"""Hot reload: when files change, what is served is replaced whole, or not at all.

Every process looks for itself, so replicas on one folder need not speak to each other. A change counts once it has
stood still between two looks: a deployment that copies twenty files is read once, after the last of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import structlog

from gateway.core.errors import Unavailable
from gateway.core.problems import InvalidConfig, Problem
from gateway.core.registry import Registry

log = structlog.get_logger()

LOOK_S = 0.4
"""Between two looks at the files; a change is served after two of them and the time that building takes."""

Signature = frozenset[tuple[str, int, int, int]]


class Reloader:
    """Follows the files under `home`.

    `read` builds a registry and may block for as long as loading weights takes: it runs in a thread. `adopt` puts it
    to use; where it raises Unavailable, the files are read again at the next look. What `read` refuses changes
    nothing, and stands in `problems` until the files are mended.
    """

    def __init__(self, home: Path, read: Callable[[], Registry], adopt: Callable[[Registry], Awaitable[None]]) -> None:
        """Make one before the first reading, so that no edit falls between the two."""
        self._home, self._read, self._adopt = home, read, adopt
        self._seen = self._read_last = signature(home)
        self.problems: Sequence[Problem] = ()

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Read the files if they changed and have come to rest."""
        now = await asyncio.to_thread(signature, self._home)
        at_rest, self._seen = now == self._seen, now
        if now == self._read_last or not at_rest:
            return
        try:
            registry = await asyncio.to_thread(self._read)
        except InvalidConfig as error:
            self._refuse(error.problems)
        except Exception as error:
            # A file that vanished under the reader, code of a task's own: whatever it is, it must not end the looking.
            log.exception("config_unreadable")
            self._refuse([Problem("tasks", "", f"reading failed with {type(error).__name__}", "the log says more")])
        else:
            if await asyncio.to_thread(signature, self._home) != now or not await self._adopted(registry):
                return
        self._read_last = now

    async def _adopted(self, registry: Registry) -> bool:
        try:
            await self._adopt(registry)
        except Unavailable:
            log.warning("config_not_adopted", reason="a store is away")
            return False
        self.problems = ()
        log.info("config_reloaded", tasks={name: task.fingerprint for name, task in registry.tasks.items()})
        return True

    def _refuse(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        log.error("config_refused", problems=[str(problem) for problem in problems])


def signature(home: Path) -> Signature:
    """Which files there are under `home`, and which state they are in, without reading them."""
    found = []
    for path in _files(home):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append((str(path.relative_to(home)), stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return frozenset(found)


def _files(home: Path) -> Iterator[Path]:
    yield home / "models.toml"
    for folder in ("tasks", "prompts"):
        for path in (home / folder).rglob("*"):
            if not path.is_dir() and "__pycache__" not in path.parts:
                yield path
