"""API keys as text: what is one, what is none, and who is let in by one."""

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.keys import Presented, mint, parse, verify

NOW = datetime(2026, 3, 1, tzinfo=UTC)
IDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=16, max_size=16)
SECRETS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", min_size=43, max_size=43)


@settings(deadline=None)
@given(IDS, SECRETS)
def test_a_key_parses_to_itself(key_id: str, secret: str) -> None:
    """The parts of every well-formed key are those that it was made of, also where they hold `_` and `-`."""
    assert parse(f"gk_{key_id}_{secret}") == Presented(key_id, secret)


@settings(deadline=None)
@given(st.binary(max_size=100) | st.builds(bytes.__add__, st.just(b"gk_0123456789abcdef_"), st.binary(max_size=50)))
def test_any_bytes_are_a_key_or_none(header: bytes) -> None:
    """Nothing raises, and whatever parses is spelled in full by its parts."""
    text = header.decode("latin-1")
    presented = parse(text)
    assert presented is None or f"gk_{presented.id}_{presented.secret}" == text


@settings(deadline=None)
@given(IDS, SECRETS, st.integers(0, 62), st.sampled_from("\n\0 _-/+=.é０"))
def test_what_is_spliced_into_a_key_makes_it_none(key_id: str, secret: str, at: int, more: str) -> None:
    """A key has one length: anything more, wherever it stands, also a line's end behind it, is no key."""
    text = f"gk_{key_id}_{secret}"
    assert parse(text[:at] + more + text[at:]) is None
    assert parse(text + more) is None


@pytest.mark.parametrize("team", ["shop", "trust"])
def test_a_minted_key_lets_its_team_in(team: str) -> None:
    """Its text proves the caller; only a hash of the secret is kept."""
    stored, text = mint(team, frozenset({"read"}), NOW)
    presented = parse(text)
    assert presented is not None
    caller = verify(presented, stored, NOW)
    assert caller is not None
    assert (caller.team, caller.key_id, caller.scopes) == (team, stored.id, {"read"})
    assert presented.secret.encode() not in stored.secret_hash


@settings(deadline=None)
@given(SECRETS)
def test_another_secret_lets_nobody_in(secret: str) -> None:
    """The id alone proves nothing."""
    stored, _ = mint("shop", frozenset({"read"}), NOW)
    assert verify(Presented(stored.id, secret), stored, NOW) is None
    assert verify(Presented(stored.id, secret), replace(stored, secret_hash=b""), NOW) is None


def test_secrets_are_compared_by_digests_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right secret and a wrong one each cost one `compare_digest` of two SHA-256 sums: keys are found by their public
    id, so no index and no other comparison ever sees the secret. Time itself is not measured here.
    """
    compared: list[tuple[bytes, bytes]] = []

    def noted(one: bytes, two: bytes, compare: Callable[[bytes, bytes], bool] = hmac.compare_digest) -> bool:
        compared.append((one, two))
        return compare(one, two)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    stored, text = mint("shop", frozenset({"read"}), NOW)
    presented = parse(text)
    assert presented is not None
    wrong = replace(presented, secret=presented.secret[::-1])
    assert [verify(key, stored, NOW) is not None for key in (presented, wrong)] == [True, False]
    assert compared == [(sha256(key.secret.encode()).digest(), stored.secret_hash) for key in (presented, wrong)]
