"""Text normalisation, shared by the rules, the prefilter and the prompts.

People who want to slip past a filter write with look-alike letters, invisible characters, digits for letters
and spaces between letters. `clean` undoes what no honest reader would notice; `fold` goes further and is
lossy, so only the rules match on it.
"""

import re
import unicodedata

# Letters of other scripts that are drawn like a Latin one. Only the pairs that are seen in the wild: a full
# confusables table would turn honest Greek and Russian into noise.
_LOOKALIKES = str.maketrans(
    "аеорсухіјѕԁһвнкмтпгѵԛԝАЕОРСУХІЈЅВНКМТαορνικτυΑΒΕΖΗΙΚΜΝΟΡΤΥΧıɡɑ",
    "aeopcyxijsdhbhkmtnrvqwAEOPCYXIJSBHKMTaopviktuABEZHIKMNOPTYXiga",
)
_WORD = re.compile(r"\w+")
_SPACES = re.compile(r"\s+")
_LEET = str.maketrans("013457@$!|", "oieastasil")
_SPACED_LETTERS = re.compile(r"(?<!\w)(?:\w[ .\-_*]{1,2}){2,40}\w(?!\w)")
_SEPARATORS = re.compile(r"[ .\-_*]+")
_REPEATS = re.compile(r"(.)\1{2,}")
_LETTER_WITH_DIGIT = re.compile(r"(?=\S*[a-z])(?=\S*[013457@$!|])\S+")
_CHUNK = re.compile(r"\S+")


def clean(text: str) -> str:
    """NFKC, without invisible characters, look-alike letters in Latin words made Latin, white space folded.

    Harmless to honest text: a word wholly in another script keeps its letters unless every one of them has a
    Latin twin and the text around it is Latin.
    """
    text = unicodedata.normalize("NFKC", text)
    if not text.isascii():
        text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc", "Cs", "Mn") or c in "\n\t")
        latin = any("a" <= c <= "z" or "A" <= c <= "Z" for c in text)
        text = _WORD.sub(lambda m: _latin_word(m.group(), latin), text)
    return _SPACES.sub(" ", text.replace("\x00", "")).strip()


def _latin_word(word: str, latin_text: bool) -> str:
    if word.isascii():
        return word
    twin = word.translate(_LOOKALIKES)
    return twin if twin.isascii() and (latin_text or any(c.isascii() and c.isalpha() for c in word)) else word


def fold(text: str) -> str:
    """`clean`, then lower case, accents dropped, digits for letters undone, spaced-out letters joined, runs cut.

    Lossy on purpose ("50 first" stays "50 first", but "c4sh" becomes "cash"). The length never grows.
    """
    text = clean(text).casefold()
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    text = _SPACED_LETTERS.sub(lambda m: _SEPARATORS.sub("", m.group()), text)
    text = _CHUNK.sub(lambda m: _unleet(m.group()), text)
    return _REPEATS.sub(r"\1\1", text)


def _unleet(chunk: str) -> str:
    return chunk.translate(_LEET) if _LETTER_WITH_DIGIT.fullmatch(chunk) else chunk
