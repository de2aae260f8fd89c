"""A corner of a real server that a test has for itself."""

from uuid import uuid4

from gateway.adapters.redis import RedisSettings

PATIENT_S = 30.0
"""How fast a busy machine answers is no property of the store: only tests of time limits set shorter ones."""


def corner(url: str, prefix: str | None = None, *, rest_s: float = 1.0) -> RedisSettings:
    """Keys under a prefix of its own, and patience."""
    return RedisSettings(url=url, prefix=prefix or f"{uuid4().hex}:", timeout_s=PATIENT_S, rest_s=rest_s)
