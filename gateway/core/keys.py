"""API keys: `gk_<key id>_<secret>`. Only a hash of the secret is ever stored.

The secret is 32 random bytes, so one SHA-256 is enough: there is no password to guess, only a number of 256 bits.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol, get_args

from msgspec import Struct

from gateway.core.audit import TERMINAL, Actor
from gateway.core.inference import Caller

KeyScope = Literal["invoke", "read", "review", "lead", "finance", "admin"]
SCOPES: tuple[str, ...] = get_args(KeyScope)

_KEY = re.compile(r"gk_([a-z0-9]{16})_([A-Za-z0-9_-]{43})")


class ApiKey(Struct, frozen=True, kw_only=True):
    """What is stored of a key."""

    id: str
    team: str
    scopes: frozenset[str]
    secret_hash: bytes
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def usable(self, now: datetime) -> bool:
        """Neither revoked nor expired at `now`."""
        return (self.revoked_at is None or now < self.revoked_at) and (self.expires_at is None or now < self.expires_at)


class Presented(Struct, frozen=True):
    """A well-formed key as a caller sent it."""

    id: str
    secret: str


class KeyStore(Protocol):
    """Where keys live. Whatever changes them is written to the audit log as the act of `by`, in one transaction."""

    async def find(self, key_id: str) -> ApiKey | None:
        """The key of that id, usable or not. Raises Unavailable."""

    async def add(self, key: ApiKey, by: Actor = TERMINAL) -> None:
        """Store a new key. Raises NotFound where the team does not exist, Unavailable."""

    async def rotate(self, key_id: str, new: ApiKey, until: datetime, by: Actor = TERMINAL) -> None:
        """Store `new` in the place of a key, which is refused from `until` on: both or neither.

        Raises NotFound, Unavailable.
        """

    async def of_team(self, team: str | None) -> Sequence[ApiKey]:
        """All keys of a team, or of all, oldest first."""

    async def revoke(self, key_id: str, at: datetime, by: Actor = TERMINAL) -> None:
        """From `at` on the key is refused. Raises NotFound."""


def mint(team: str, scopes: frozenset[str], now: datetime, expires_at: datetime | None = None) -> tuple[ApiKey, str]:
    """A new key and its full text, which is shown once and never again."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    key = ApiKey(id=key_id, team=team, scopes=scopes, secret_hash=_hash(secret), created_at=now, expires_at=expires_at)
    return key, f"gk_{key_id}_{secret}"


def parse(text: str) -> Presented | None:
    """The parts of a key, or None for what cannot be one."""
    match = _KEY.fullmatch(text)
    return Presented(match.group(1), match.group(2)) if match else None


def verify(presented: Presented, stored: ApiKey, now: datetime) -> Caller | None:
    """The caller that the key proves, or None. The comparison takes the same time wherever it differs."""
    good = hmac.compare_digest(_hash(presented.secret), stored.secret_hash)
    return Caller(stored.team, stored.id, stored.scopes) if good and stored.usable(now) else None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
