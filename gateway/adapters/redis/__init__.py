"""The Redis protocol (Redis or Valkey ≥ 6.2, one primary): quotas, budgets, kept answers. RedisStore is the door."""

from gateway.adapters.redis.settings import RedisSettings
from gateway.adapters.redis.store import OpenReservation, RedisStore, StoreHealth

__all__ = ["OpenReservation", "RedisSettings", "RedisStore", "StoreHealth"]
