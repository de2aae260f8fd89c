"""Who asks: key → Caller, before a byte of the body is read.

A stored key is remembered in the process for at most two seconds, so that a revoked one is refused everywhere within
that time while the key store sees a fraction of the requests. Unknown, wrong, expired and revoked look the same.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

from litestar import Request
from msgspec import Struct

from gateway.core.clock import Clock
from gateway.core.errors import Forbidden, MethodNotAllowed, QuotaExceeded, Unauthenticated
from gateway.core.inference import Caller
from gateway.core.keys import ApiKey, KeyStore, Presented, mint, parse, verify
from gateway.core.telemetry import Sampler
from gateway.web.contract import contract_of
from gateway.web.exchange import AnyConnection, exchange_of, header
from gateway.web.limits import FailureThrottle, address_of

REMEMBER_S = 2.0
_REMEMBERED = 4096

# Compared with where no key is stored, so that an unknown id takes as long as a wrong secret.
_NOBODY, _ = mint("nobody", frozenset(), datetime(2000, 1, 1, tzinfo=UTC), expires_at=datetime(2000, 1, 1, tzinfo=UTC))


class _Seen(Struct, frozen=True):
    key: ApiKey | None
    until_s: float


class Keyring:
    """Stored keys, remembered for two seconds. Bounded; one look-up per key at a time."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._seen: dict[str, _Seen] = {}
        self._looking: dict[str, asyncio.Task[ApiKey | None]] = {}

    async def find(self, key_id: str) -> ApiKey | None:
        """The key, at most two seconds old. Raises Unavailable."""
        seen = self._seen.get(key_id)
        if seen is not None and self._clock.monotonic_s() < seen.until_s:
            return seen.key
        if (looking := self._looking.get(key_id)) is None:
            looking = self._looking[key_id] = asyncio.create_task(self._look_up(key_id))
        return await asyncio.shield(looking)

    def forget(self, key_id: str) -> None:
        """Ask the store at the next request."""
        self._seen.pop(key_id, None)

    async def _look_up(self, key_id: str) -> ApiKey | None:
        # The two seconds count from before the look-up: what is revoked while it runs is not remembered for longer.
        until_s = self._clock.monotonic_s() + REMEMBER_S
        try:
            key = await self._store.find(key_id)
        finally:
            del self._looking[key_id]
        self._seen.pop(key_id, None)
        if len(self._seen) >= _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[key_id] = _Seen(key, until_s)
        return key


class Doorkeeper:
    """What every request meets first: who asks, and whether the key has one of the scopes that the route's contract
    names. A hook before the request and no guard of the framework's, which copies the route for each call of a guard.
    """

    def __init__(
        self, keyring: Keyring, clock: Clock, sampled: Sampler = lambda _, parent: parent is not False
    ) -> None:
        self._keyring, self._clock, self._sampled = keyring, clock, sampled
        self._throttle = FailureThrottle(clock)
        self._few = asyncio.Semaphore(4)

    async def __call__(self, request: Request[Any, Any, Any]) -> None:
        """Raises Unauthenticated, Forbidden, MethodNotAllowed, QuotaExceeded and Unavailable."""
        if request.method == "OPTIONS":
            # The framework would answer it, but the gateway serves no browsers of other origins.
            raise MethodNotAllowed("This page does not answer that method.")
        exchange = exchange_of(request, self._clock)
        exchange.sampled = self._sampled(exchange.trace_id, exchange.parent_sampled)
        contract = contract_of(request.route_handler)
        if contract.public:
            return
        caller = await self.prove(request, _key_text(request))
        if not contract.scopes & caller.scopes:
            needed = " or ".join(sorted(contract.scopes))
            raise Forbidden(f"This key lacks the scope `{needed}`.", needs=sorted(contract.scopes))
        exchange.caller = caller

    async def prove(self, connection: AnyConnection, text: str) -> Caller:
        """Who holds this key. Raises Unauthenticated; QuotaExceeded where too many bad ones come from one address."""
        address = address_of(connection)
        wait_s = self._throttle.wait_s(address)
        presented = parse(text)
        stored = await self._find(presented, hurried=wait_s == 0) if presented else None
        caller = verify(presented, stored or _NOBODY, self._clock.now()) if presented else None
        if caller is not None:
            return caller
        # Others from there may have failed while this one was looked up.
        if (wait_s := max(wait_s, self._throttle.wait_s(address))) > 0:
            raise QuotaExceeded("Too many bad keys from this address.", retry_after_s=wait_s)
        self._throttle.failed(address)
        raise Unauthenticated("Send a valid key as `Authorization: Bearer gk_…`.")

    async def _find(self, presented: Presented, *, hurried: bool) -> ApiKey | None:
        """The stored key. Where bad keys pour in, look-ups go a few at a time: good keys from the same address, which
        may be that of a proxy, wait for their turn but are never refused.
        """
        if hurried:
            return await self._keyring.find(presented.id)
        async with self._few:
            return await self._keyring.find(presented.id)


def _key_text(connection: AnyConnection) -> str:
    if (authorization := header(connection, b"authorization")) is not None:
        scheme, _, text = authorization.partition(b" ")
        raw = text.strip() if scheme.lower() == b"bearer" else b""
    else:
        raw = header(connection, b"x-api-key") or b""
    return raw.decode("latin-1")
