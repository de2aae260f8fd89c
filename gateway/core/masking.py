"""What a reviewer need not see to judge a message: addresses, phone numbers and card numbers become their kind."""

import re
from typing import Any

_EMAIL = re.compile(r"[\w.+-]{1,64}[@\uff20\ufe6b][\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")
# Digits with the separators people put between them, and those that hide there: dashes and blanks of every width, what
# has no width at all. What is shorter is a price, a date or an hour.
_BETWEEN = r"[\s./()\-\u2010-\u2015\u2212\u00b7_*\u00ad\u200b-\u200d\u2060\ufeff]{0,3}"
# Letters may touch it ("tel5550123456"), as who hides a number writes it; one or two capitals before it are a code's.
_DIGITS = re.compile(rf"(?<![\d+])(?<!\b[A-Z])(?<!\b[A-Z]{{2}})\(?\+?\(?\d(?:{_BETWEEN}\d){{6,18}}(?!\d)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{4}")


def mask(value: Any) -> Any:
    """A JSON value with its texts masked: `[email]`, `[card]`, `[phone]`. The kind stays: policies are about it. A
    number without quotes that is as long as a phone's is one.
    """
    if isinstance(value, str):
        return _DIGITS.sub(_number, _EMAIL.sub("[email]", value))
    if isinstance(value, int) and not isinstance(value, bool):
        return value if (seen := mask(str(value))) == str(value) else seen
    if isinstance(value, list):
        return [mask(each) for each in value]
    if isinstance(value, dict):
        return {name: mask(each) for name, each in value.items()}
    return value


def _number(found: "re.Match[str]") -> str:
    text = found.group()
    if _DATE.fullmatch(text.strip()):
        return text
    digits = [int(char) for char in text if char.isdigit()]
    return "[card]" if 13 <= len(digits) <= 19 and _luhn(digits) else "[phone]"


def _luhn(digits: list[int]) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    doubled = (digit if i % 2 else sum(divmod(2 * digit, 10)) for i, digit in enumerate(reversed(digits), 1))
    return sum(doubled) % 10 == 0
