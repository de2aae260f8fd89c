"""Properties of what reads bodies."""

import json
import time
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import InvalidInput
from gateway.web.doors import WebSettings
from gateway.web.envelope import BatchBody, InvokeBody, attribution, parse
from gateway.web.limits import deeper_than, more_values_than

SETTINGS = WebSettings()
DECODER = msgspec.json.Decoder(InvokeBody)
BATCH = msgspec.json.Decoder(BatchBody)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4), max_leaves=40
)


def depth(value: object) -> int:
    """Levels of nesting, counted the slow way."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(value=values, limit=st.integers(0, 6), ascii_only=st.booleans())
def test_depth_is_counted_right(value, limit, ascii_only):
    """The count on bytes agrees with the count on the parsed value, whatever the texts hold."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assert deeper_than(limit, body) is (depth(value) > limit)


@given(body=st.binary(max_size=200) | values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_a_body_or_an_error(body):
    """Parsing never raises anything but InvalidInput."""
    for decoder in (DECODER, BATCH):
        with suppress(InvalidInput):
            parse(decoder, body, SETTINGS)


@settings(deadline=None)
@given(item=st.dictionaries(st.text(), values, max_size=5))
def test_a_parsed_input_is_the_one_that_was_sent(item):
    """What comes out is what went in; only NUL, lone surrogates and depth are refused."""
    body = json.dumps({"input": item}).encode()
    try:
        parsed = parse(DECODER, body, SETTINGS)
    except InvalidInput:
        assert "\\u0000" in body.decode() or "\\ud" in body.decode() or depth(item) > 31
    else:
        assert parsed.input == item


@given(tags=st.lists(st.text(min_size=1, max_size=64), max_size=20))
def test_tags_are_kept_once_and_in_order(tags):
    """Attribution joins the tags of the request and the config without repeating any."""
    body = msgspec.convert({"input": {}, "metadata": {"tags": tags}, "config": {"tags": tags}}, InvokeBody)
    assert list(attribution(body.metadata, body.config).tags) == list(dict.fromkeys(tags))


@pytest.mark.parametrize("body", [b'{"input":{"a":"\\\\u0000"}}', b'{"input":{"\\\\u0000":1}}'])
def test_an_escaped_backslash_is_no_nul(body):
    """Text that merely looks like an escape of NUL is kept."""
    assert parse(DECODER, body, SETTINGS).input


@given(texts=st.lists(st.text(), max_size=8), limit=st.integers(0, 6))
def test_values_are_counted_outside_of_texts(texts, limit):
    """Commas in texts are no values."""
    assert more_values_than(limit, json.dumps(texts).encode()) is (len(texts) - 1 > limit)


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 400_000, b'"' + b"," * 400_000 + b"\\", b'",' * 300_000])
def test_counting_is_linear_in_broken_json(body):
    """A string that never ends is not searched again from every quote in it."""
    began = time.monotonic()
    more_values_than(0, body + b",")
    assert time.monotonic() - began < 15, "what is not linear takes minutes"
