"""What is masked, and what is left alone."""

import pytest

from gateway.core.masking import mask


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("mail me: a.b+c@example.co.uk!", "mail me: [email]!"),
        ("call 0170 555-0142 now", "call [phone] now"),
        ("(+49) 170 / 5550142", "[phone]"),
        ("4111 1111 1111 1111", "[card]"),
        ("4111 1111 1111 1112", "[phone]"),
        ("on 2026-03-14 at 10:30 for 120.50", "on 2026-03-14 at 10:30 for 120.50"),
        ("room 12, 3 pm", "room 12, 3 pm"),
        ("a\uff20example.org", "[email]"),
        ("0170\u2013555\u20110142", "[phone]"),
        ("0170\u00a0555\u200b0142", "[phone]"),
        ("0170_555_0142_", "[phone]_"),
        ("0170\n555\n0142", "[phone]"),
        ("order AB12345678", "order AB12345678"),
        ("invoice X12345678", "invoice X12345678"),
        ("tel01705550142", "tel[phone]"),
        ("TEL01705550142or", "TEL[phone]or"),
        ("ring0170 555-0142after six", "ring[phone]after six"),
    ],
)
def test_numbers_and_addresses_become_their_kind(text: str, seen: str) -> None:
    """Cards are told from phones by their check digit; dates, hours and prices stay."""
    assert mask(text) == seen


def test_every_text_of_a_value_is_masked() -> None:
    """At any depth; keys stay, and numbers that are too short for a phone."""
    value = {"message": "x@y.org", "context": [{"message": "0170 555 0142", "n": 5, "call": 1705550142, "ok": True}]}
    seen = {"message": "[email]", "context": [{"message": "[phone]", "n": 5, "call": "[phone]", "ok": True}]}
    assert mask(value) == seen
