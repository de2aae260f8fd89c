"""Text normalisation, shared by the rules, the prefilter and the prompts.

People who want to slip past a filter write with look-alike letters, invisible characters, digits for letters
and spaces between letters. `clean` undoes what no honest reader would notice; `fold` goes further and is
lossy: the rules match on it, and the prefilter reads words from it.
"""

import re
import unicodedata
from functools import lru_cache

# Letters of other scripts that are drawn like a Latin one. Only the pairs that are seen in the wild: a full
# confusables table would turn honest Greek and Russian into noise.
_LOOKALIKES = str.maketrans(
    "аеёорсухіїјѕԁһвнкмтпгѵԛԝАЕЁОРСУХІЇЈЅВНКМТαορνικτυΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɡɑ",
    "aeeopcyxiijsdhbhkmtnrvqwAEEOPCYXIIJSBHKMTaopviktuABEZHIKMNOPTYXiga",
)
# Letters in filled circles and squares, which NFKC leaves alone: emoji that stand for a letter.
_BADGES = {start + i: chr(ord("A") + i) for start in (0x1F150, 0x1F170) for i in range(26)}
# Arabic phrases in one character, which NFKC would make eight and eighteen times as long.
_PHRASES = {0xFDFA: " ", 0xFDFB: " "}
_INVISIBLE_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
# Accents and variation selectors. The vowel signs of Indic and other scripts are marks too, but part of the word.
_MARKS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f]")
_CONTROLS = dict.fromkeys({*range(0x20), 0x7F} - set(b"\t\n\v\f\r"))
_WORD = re.compile(r"\w+")
_SPACES = re.compile(r"\s+")
_LEET = str.maketrans("013457@$!|€", "oieastasile")
_LEET_CHUNK = re.compile(r"(?<![\w@$!|€])(?:(?=[\w@$!|€]*[a-z])(?=[\w@$!|€]*[013457@$!|€])[\w@$€][\w@$!|€]*[\w@$€])")
_COUNTED = re.compile(r"[$€]?\d+[a-z]{0,2}\d?")
_SPACED_LETTERS = re.compile(r"(?<!\w)(?:[^\W_][ .\-_*]{1,2}){2,40}[^\W_](?!\w)")
_SEPARATORS = re.compile(r"[ .\-_*]+")
_REPEATS = re.compile(r"(\D)\1{2,}")


def clean(text: str) -> str:
    """NFKC, without invisible characters, look-alike letters in Latin words made Latin, white space folded.

    Harmless to honest text: a word wholly in another script keeps its letters unless every one of them has a
    Latin twin and the text around it is Latin.
    """
    text = unicodedata.normalize("NFKC", text.translate(_PHRASES))
    if not text.isascii():
        text = _MARKS.sub("", "".join(c for c in text if _is_visible(c)).translate(_BADGES))
        latin = any("a" <= c <= "z" or "A" <= c <= "Z" for c in text)
        text = _WORD.sub(lambda m: _latin_word(m.group(), latin), text)
    return _SPACES.sub(" ", text.translate(_CONTROLS)).strip()


@lru_cache(maxsize=128)
def fold(text: str) -> str:
    """`clean`, then lower case, accents dropped, digits for letters undone, spaced-out letters joined, runs cut.

    Lossy on purpose: "c4sh" and "c a s h" become "cash", while "10am", "2nd" and "555-0142" stay.
    Kept for a moment, since the stages of a cascade fold the same text one after the other.
    """
    text = clean(text).casefold()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    text = _SPACED_LETTERS.sub(lambda m: _joined(m.group()), text)
    text = _LEET_CHUNK.sub(lambda m: _unleet(m.group()), text)
    return _REPEATS.sub(r"\1\1", text)


def _is_visible(char: str) -> bool:
    return char in "\n\t\r" or (unicodedata.category(char) not in ("Cf", "Cc", "Cs") and char not in _INVISIBLE_LETTERS)


def _latin_word(word: str, latin_text: bool) -> str:
    if word.isascii():
        return word
    twin = word.translate(_LOOKALIKES)
    return twin if twin.isascii() and (latin_text or any(c.isascii() and c.isalpha() for c in word)) else word


def _joined(letters: str) -> str:
    """Spaced-out digits are a phone number or a list, and stay as they are."""
    return _SEPARATORS.sub("", letters) if any(c.isalpha() for c in letters) else letters


def _unleet(chunk: str) -> str:
    return chunk if _COUNTED.fullmatch(chunk) else chunk.translate(_LEET)
