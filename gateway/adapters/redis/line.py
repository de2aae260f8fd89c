"""The line to the store: one connection, batches, timeouts and a breaker.

Requests that arrive while a batch is on the wire leave together in the next one, so that under load one system call
carries many commands; alone, a request leaves at once. This is the one place where exceptions of the Redis client
become `Unavailable`.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import hiredis
import structlog
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from gateway.adapters.redis.settings import RedisSettings
from gateway.core.errors import Unavailable

log = structlog.get_logger()

Argument = str | bytes | int
Command = tuple[Argument, ...]
Reply = Any

_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]
_Waiting = tuple[Sequence[Command], asyncio.Future[list[Reply]]]

# More commands in one batch would make the last one wait for all the others.
_BATCH = 256


class Script:
    """A Lua script beside this module. Its name has its version: replicas of two releases can share a store."""

    def __init__(self, name: str) -> None:
        self.text = files("gateway.adapters.redis").joinpath(f"{name}.lua").read_text("utf-8")
        self._sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[Argument], *arguments: Argument) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self._sha, len(keys), *keys, *arguments)


class Line:
    """Sends commands of one event loop, within the time limits and with the breaker of its settings."""

    def __init__(self, settings: RedisSettings, scripts: Sequence[Script] = ()) -> None:
        # protocol 2: replies only, no pushes. Retries and time limits are the line's own.
        pool = ConnectionPool.from_url(
            settings.url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=settings.timeout_s,
        )
        self._connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
        self._scripts = scripts
        self._timeout_s, self._failures_allowed, self._rest_s = settings.timeout_s, settings.failures, settings.rest_s
        self._failures, self._rests_until_s = 0, 0.0
        self._waiting: list[_Waiting] = []
        self._sender: asyncio.Task[None] | None = None
        self._server_id = ""

    @property
    def up(self) -> bool:
        """False from the first failed exchange to the next good one."""
        return self._failures == 0

    async def server_id(self) -> str:
        """The id that the running server gave itself. Raises Unavailable."""
        if not self._server_id:
            await self.ask(("PING",))
        return self._server_id

    async def ask(self, *commands: Command) -> list[Reply]:
        """One round trip: the replies, in order. Raises Unavailable, at once while the breaker is open.

        A caller that is cancelled does not disturb the others; its commands may have been carried out.
        """
        if self._failures >= self._failures_allowed and time.monotonic() < self._rests_until_s:
            raise Unavailable("The quota store is unavailable.", retry_after_s=self._rest_s)
        answered: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._waiting.append((commands, answered))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        replies = await answered
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise Unavailable("The quota store refused a command.") from reply
        return replies

    async def close(self) -> None:
        """Answer what is waiting, then hang up."""
        if self._sender is not None:
            await asyncio.wait([self._sender])
        await self._connection.disconnect()

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            try:
                replies = await self._exchange([command for commands, _ in batch for command in commands])
            except (RedisError, OSError) as error:
                await self._fail(batch, error)
            except BaseException:
                await self._fail(batch, None)
                raise
            else:
                self._failures = 0
                _hand_out(batch, replies)

    async def _exchange(self, commands: Sequence[Command]) -> list[Reply]:
        if not self._connection.is_connected or await self._connection.can_read():
            # Unasked data on an idle line is the end of the file: the server has gone, and nothing was sent yet.
            await self._connection.disconnect(nowait=True)
            async with asyncio.timeout(self._timeout_s):
                await self._connect()
        async with asyncio.timeout(self._timeout_s):
            replies = await self._talk(commands)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                replies = await self._again(commands, replies)
        return replies

    async def _connect(self) -> None:
        await self._connection.connect()
        info, *_ = await self._talk([("INFO", "server"), *self._loading()])
        self._server_id = _run_id(info)

    async def _again(self, commands: Sequence[Command], replies: list[Reply]) -> list[Reply]:
        """Somebody emptied the script cache: load the scripts, and send again only what was turned away."""
        missed = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        repeated = await self._talk([*self._loading(), *(commands[place] for place in missed)])
        for place, reply in zip(missed, repeated[len(self._scripts) :], strict=True):
            replies[place] = reply
        return replies

    def _loading(self) -> list[Command]:
        return [("SCRIPT", "LOAD", script.text) for script in self._scripts]

    async def _talk(self, commands: Sequence[Command]) -> list[Reply]:
        packed = b"".join([_pack(command) for command in commands])
        await self._connection.send_packed_command(packed, check_health=False)
        return [await self._reply() for _ in commands]

    async def _reply(self) -> Reply:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error

    async def _fail(self, batch: list[_Waiting], error: Exception | None) -> None:
        self._failures += 1
        self._rests_until_s = time.monotonic() + self._rest_s
        log.warning("store_exchange_failed", error=type(error).__name__, failures=self._failures)
        if self._failures >= self._failures_allowed:
            batch, self._waiting = batch + self._waiting, []
        for _, answered in batch:
            if not answered.done():
                failure = Unavailable("The quota store is unavailable.", retry_after_s=self._rest_s)
                failure.__cause__ = error
                answered.set_exception(failure)
        await self._connection.disconnect(nowait=True)


def _hand_out(batch: list[_Waiting], replies: list[Reply]) -> None:
    start = 0
    for commands, answered in batch:
        if not answered.done():
            answered.set_result(replies[start : start + len(commands)])
        start += len(commands)


def _run_id(info: Reply) -> str:
    """From INFO; servers that keep it to themselves are told apart only by being empty."""
    lines = info.decode().splitlines() if isinstance(info, bytes) else []
    return next((line.partition(":")[2] for line in lines if line.startswith("run_id:")), "unnamed")
