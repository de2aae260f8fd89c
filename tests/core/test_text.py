"""Normalisation: what clean may undo, what only fold may, and what honest text must keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.text import clean, fold


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("p\u200bay c\u00adash", "pay cash"),
        ("frёe сrурtо fоr аll", "frёe crypto for all".replace("ё", "e")),
        ("ｆｒｅｅ 𝗺𝗼𝗻𝗲𝘆", "free money"),
        ("🅿🅰🆈 now", "PAY now"),
        ("e\u0301clair c\u0336a\u0336s\u0336h\u0336", "éclair cash"),
        ("one\x07two\x00\x1b", "onetwo"),
        ("  two\n\tlines\u00a0here ", "two lines here"),
        ("a\u3164b\u2800c", "abc"),
    ],
)
def test_clean_undoes_what_no_honest_reader_would_notice(written: str, read: str) -> None:
    """Invisible characters, look-alikes and styled letters become the letters that a reader sees."""
    assert clean(written) == read


@pytest.mark.parametrize(
    "honest", ["Привет, как дела?", "καλημέρα", "नमस्ते दुनिया", "¿Cuánto cuesta, señor?", "3/4 inch – ok"]
)
def test_clean_leaves_honest_text_alone(honest: str) -> None:
    """Other scripts, accents and punctuation stay as they are written."""
    assert clean(honest) == honest


@pytest.mark.parametrize(
    ("written", "folded"),
    [
        ("wh4tsapp and p a y c a s h", "whatsapp and paycash"),
        ("u.g.l.y  w0rk", "ugly work"),
        ("C-A-S-H", "cash"),
        ("1d!0t p!c", "idiot pic"),
        ("fr€€ c@sh", "free cash"),
        ("Soooooo naïve", "soo naive"),
        ("S E 0", "seo"),
    ],
)
def test_fold_undoes_disguises(written: str, folded: str) -> None:
    """Leet, spaced-out letters, accents and stretched letters fold to the plain word."""
    assert fold(written) == folded


@pytest.mark.parametrize(
    "plain", ["at 10am or 2pm", "call 555-0142!", "the 2nd of 3", "$450 or 450$", "5 5 5 - 0 1 4 2", "hello!"]
)
def test_fold_keeps_numbers(plain: str) -> None:
    """Times, ordinals, amounts and phone numbers are not spelling tricks."""
    assert fold(plain) == plain


@given(st.text(max_size=200))
def test_clean_leaves_nothing_invisible(text: str) -> None:
    """Nothing invisible is left: no control character and no run of white space."""
    cleaned = clean(text)
    assert not any(ord(c) < 32 or ord(c) == 127 for c in cleaned)
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()


@given(st.text(max_size=200))
def test_clean_text_is_clean(text: str) -> None:
    """Cleaning twice is cleaning once, so that it does not matter who cleaned before."""
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize("char", ["\ufdfa", "\ufdfb", "\ufb03", "㌕", "⑳"])
def test_clean_does_not_blow_text_up(char: str) -> None:
    """No character becomes more than a handful: a message cannot grow past what was admitted as its size."""
    assert len(clean(char * 1000)) <= 6000


@given(st.text(max_size=200))
def test_fold_never_raises_and_is_lower_case(text: str) -> None:
    """Any text folds, and folds to lower case."""
    folded = fold(text)
    assert not any("A" <= c <= "Z" for c in folded)
