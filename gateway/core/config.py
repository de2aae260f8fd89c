"""TOML → declared values. Where msgspec stops at the first mistake, this goes on and reports every one."""

import re
import tomllib
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from gateway.core.problems import Problem, did_you_mean
from gateway.core.task import Declared, Stage

D = TypeVar("D", bound=Declared)

_WHERE = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_TAGS = {member.__struct_config__.tag: member for member in get_args(Stage)}


def read_toml(text: bytes, file: str, problems: list[Problem]) -> dict[str, Any] | None:
    """The parsed file, or None with a problem added."""
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        # tomllib lets through what Python itself refuses: integers of thousands of digits, and nesting without end.
        problems.append(Problem(file, "", f"this is not TOML: {error}", "check quotes and brackets near that place"))
        return None


def construct(kind: type[D], raw: object, file: str, path: str, problems: list[Problem]) -> D | None:
    """A value of `kind` from parsed TOML, or None with every mistake in `problems`.

    Each field is read on its own, so that one wrong field does not hide the next.
    """
    if not isinstance(raw, dict):
        problems.append(Problem(file, path, f"expected a table, got {_type_name(raw)}"))
        return None
    before = len(problems)
    fields = {f.encode_name: f for f in msgspec.structs.fields(kind)}
    tag = kind.__struct_config__.tag_field
    for key in raw:
        if key not in fields and key != tag:
            problems.append(Problem(file, _join(path, key), "unknown key", did_you_mean(key, fields)))
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key in raw:
            values[field.name] = _value(field.type, raw[key], file, _join(path, key), problems)
        elif field.required:
            problems.append(Problem(file, _join(path, key), "this key is missing"))
    return kind(**values) if len(problems) == before else None


def _value(kind: Any, raw: object, file: str, path: str, problems: list[Problem]) -> Any:
    """One field. Tables and arrays of tables are taken apart, so that each mistake in them is found."""
    origin, args = get_origin(kind), get_args(kind)
    if kind == Stage:
        return _stage(raw, file, path, problems)
    if origin is tuple and isinstance(raw, list) and _is_table(args[0]):
        return tuple(_value(args[0], item, file, f"{path}[{i}]", problems) for i, item in enumerate(raw))
    if origin is dict and isinstance(raw, dict) and _is_table(args[1]):
        return {key: _value(args[1], item, file, _join(path, key), problems) for key, item in raw.items()}
    if table := next((k for k in (kind, *args) if isinstance(k, type) and issubclass(k, Declared)), None):
        return construct(table, raw, file, path, problems)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        where = _WHERE.search(str(error))
        inner = where["path"] if where else ""
        problems.append(Problem(file, path + inner, _WHERE.sub("", str(error)).lower()))
        return None


def _stage(raw: object, file: str, path: str, problems: list[Problem]) -> Any:
    tag = raw.get("kind") if isinstance(raw, dict) else None
    if isinstance(tag, str) and tag in _TAGS:
        return construct(_TAGS[tag], raw, file, path, problems)
    hint = did_you_mean(str(tag), map(str, _TAGS))
    problems.append(Problem(file, _join(path, "kind"), f"a stage needs a known kind, not {tag!r}", hint))
    return None


def _is_table(kind: Any) -> bool:
    return kind == Stage or (isinstance(kind, type) and issubclass(kind, Declared))


def _type_name(raw: object) -> str:
    return {list: "an array", str: "text", int: "a number", float: "a number", bool: "a boolean"}.get(
        type(raw), type(raw).__name__
    )


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
