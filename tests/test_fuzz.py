"""Fuzzing: parsers, normalisation and keys, with any bytes and texts. GATEWAY_FUZZ_EXAMPLES makes it longer."""

import contextlib
import json
import os
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.config import read_toml
from gateway.core.errors import InvalidInput
from gateway.core.keys import mint, parse, verify
from gateway.core.problems import Problem
from gateway.core.prompts import parse_prompt
from gateway.core.text import clean, fold
from gateway.web import envelope
from gateway.web.doors import WebSettings
from gateway.web.envelope import BatchBody, InvokeBody
from gateway.web.limits import deeper_than, more_values_than

EXAMPLES = int(os.environ.get("GATEWAY_FUZZ_EXAMPLES", "150"))
fuzz = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORED, SECRET = mint("shop", frozenset({"invoke"}), NOW)
LIMITS = WebSettings(max_depth=8, max_values=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=40,
)
BYTES = st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass"))


def depth(value: object) -> int:
    """Nesting, counted the plain way."""
    if isinstance(value, list | dict):
        return 1 + max((depth(each) for each in (value.values() if isinstance(value, dict) else value)), default=0)
    return 0


@fuzz
@given(st.text(max_size=120) | st.text(alphabet="gk_0123456789abcdefx-", max_size=80))
def test_any_text_as_a_key_is_a_key_or_none(text: str) -> None:
    """Parsing never raises, and nothing but the very secret proves anything."""
    presented = parse(text)
    if presented is not None and text != SECRET:
        assert verify(presented, STORED, NOW) is None


@fuzz
@given(st.integers(0, len(SECRET) - 1), st.characters())
def test_a_key_with_one_wrong_character_proves_nothing(place: int, char: str) -> None:
    """Every character counts: in the id, it is another key's; in the secret, it is no proof."""
    wrong = SECRET[:place] + char + SECRET[place + 1 :]
    if wrong != SECRET and (presented := parse(wrong)) is not None and presented.id == STORED.id:
        assert verify(presented, STORED, NOW) is None


@fuzz
@given(BYTES | JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("kind", [InvokeBody, BatchBody])
def test_any_body_is_understood_or_refused(kind: type, body: bytes) -> None:
    """A body becomes the type, within the limits, or InvalidInput; it never breaks anything."""
    try:
        value = envelope.parse(msgspec.json.Decoder(kind), body, LIMITS)
    except InvalidInput:
        return
    assert isinstance(value, kind)
    assert depth(json.loads(body)) <= LIMITS.max_depth


@fuzz
@given(JSON, st.integers(0, 6))
def test_depth_is_counted_as_a_parser_would(value: object, limit: int) -> None:
    """The linear check of bytes and a walk over the parsed value agree, whatever stands in strings."""
    body = json.dumps(value, ensure_ascii=False).encode()
    assert deeper_than(limit, body) == (depth(value) > limit)


@fuzz
@given(BYTES, st.integers(0, 50))
def test_the_checks_before_parsing_take_any_bytes(body: bytes, limit: int) -> None:
    """They answer, whatever they are shown."""
    assert deeper_than(limit, body) in (True, False)
    assert more_values_than(limit, body) in (True, False)


@fuzz
@given(st.text(alphabet=st.characters(), max_size=300))
def test_normalising_any_text_ends_and_is_stable(text: str) -> None:
    """What was cleaned is clean; folding anything gives text without capitals of ASCII."""
    once = clean(text)
    assert clean(once) == once
    assert not any("A" <= char <= "Z" for char in fold(text))


@fuzz
@given(BYTES)
def test_any_file_is_toml_or_a_problem(text: bytes) -> None:
    """A task.toml of any bytes is read, or reported."""
    problems: list[Problem] = []
    assert (read_toml(text, "task.toml", problems) is None) == bool(problems)


@fuzz
@given(st.text(max_size=300))
def test_any_prompt_is_read_or_refused(text: str) -> None:
    """A prompt file is a prompt, or a ValueError that says why."""
    with contextlib.suppress(ValueError):
        assert parse_prompt("t/p.v1", text).variables is not None
