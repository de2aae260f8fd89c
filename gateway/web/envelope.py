"""Bodies: bytes → typed values, or every reason why not. Nothing in a reason quotes the text that is to be judged."""

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from gateway.core.errors import InvalidInput
from gateway.core.inference import Attribution
from gateway.core.loaded import LoadedTask
from gateway.web.doors import WebSettings
from gateway.web.limits import deeper_than, more_values_than

T = TypeVar("T", bound=Struct)

ECHO_CHARS = 80
_MOST_ERRORS = 50
_WHERE = re.compile(r" - at `(?P<path>\$[^`]*)`$")
_QUOTED = re.compile(r"([`'])([^`']*)\1", re.DOTALL)

Id = Annotated[str, Meta(min_length=1, max_length=200)]
Tags = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=20)]


class NoKwargs(Struct, frozen=True, forbid_unknown_fields=True):
    """LangChain clients always send `kwargs`; a task takes none."""


class ItemMetadata(Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller says of the item, for attribution and erasure. `subject_id` is the person whose text it is."""

    item_id: Id | None = None
    thread_id: Id | None = None
    subject_id: Id | None = None
    tags: Tags = ()


class ConfigMetadata(Struct, frozen=True):
    """The metadata of a LangChain config: the same keys as the request's own, and whatever else a client puts there."""

    item_id: Id | None = None
    thread_id: Id | None = None
    subject_id: Id | None = None


class Config(Struct, frozen=True):
    """A LangChain config. `tags` and `metadata` are read; everything else that clients send has no meaning here."""

    tags: Tags | None = None
    metadata: ConfigMetadata | None = None


class InvokeBody(Struct, frozen=True, forbid_unknown_fields=True):
    """One input. It must fit the task's input schema."""

    input: dict[str, Any]
    config: Config | None = None
    kwargs: NoKwargs | None = None
    metadata: ItemMetadata | None = None


class BatchBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Many inputs, each an inference of its own. One config or metadata for all, or a list with one per input."""

    inputs: list[Any]
    config: list[Config] | Config | None = None
    kwargs: NoKwargs | None = None
    metadata: list[ItemMetadata] | ItemMetadata | None = None


def parse(decoder: "msgspec.json.Decoder[T]", body: bytes, settings: WebSettings) -> T:
    """The body as the decoder's type. Raises InvalidInput with the JSON path of what is wrong."""
    if more_values_than(settings.max_values, body):
        raise invalid("The body holds too many values.", ("$", f"holds more than {settings.max_values} values"))
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        where = _WHERE.search(str(error))
        message = _WHERE.sub("", str(error))
        members, place = _members(decoder.type), where["path"] if where else "$"
        raise invalid(f"The body does not fit; its members are {members}.", (place, message)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("The body is not valid JSON in UTF-8.", ("$", "not valid JSON")) from None
    except RecursionError:
        raise _too_deep(settings.max_depth) from None
    if deeper_than(settings.max_depth, body):
        raise _too_deep(settings.max_depth)
    if b"\\u0000" in body and (path := _nul(msgspec.json.decode(body), "$")) is not None:
        # No database column and no C library downstream agrees on what NUL in a text means.
        raise invalid("Text must not hold NUL.", (path, "holds the character U+0000"))
    return value


def check_input(task: LoadedTask, value: object) -> dict[str, Any]:
    """The input as the task's schema wants it. Raises InvalidInput with the violations, up to fifty."""
    if not isinstance(value, dict):
        raise invalid("The input does not fit the task.", ("$.input", "an input is a JSON object"))
    if violations := task.input.violations(value):
        errors = ((f"$.input{path.removeprefix('$')}", message) for path, message in violations[:_MOST_ERRORS])
        raise invalid("The input does not fit the task's schema.", *errors)
    return value


def attribution(metadata: ItemMetadata | None, config: Config | None) -> Attribution:
    """What is said of an item, the request's own metadata before the config's; tags of both."""
    if metadata is None and config is None:
        return _NONE
    mine, theirs = metadata or ItemMetadata(), (config and config.metadata) or ConfigMetadata()
    return Attribution(
        mine.item_id or theirs.item_id,
        mine.thread_id or theirs.thread_id,
        mine.subject_id or theirs.subject_id,
        tuple(dict.fromkeys((*mine.tags, *((config and config.tags) or ())))),
    )


_NONE = Attribution()


def invalid(detail: str, *errors: tuple[str, str]) -> InvalidInput:
    """The error with its list of (JSON path, message)."""
    return InvalidInput(detail, errors=[{"path": _clip(path), "message": _shortened(text)} for path, text in errors])


def _members(kind: type[Struct]) -> str:
    return ", ".join(f"`{field.encode_name}`" for field in msgspec.structs.fields(kind))


def _too_deep(depth: int) -> InvalidInput:
    return invalid("The body nests too deeply.", ("$", f"nests deeper than {depth} levels"))


def _nul(value: object, path: str) -> str | None:
    """The path of the first text or key that holds NUL."""
    if isinstance(value, str):
        return path if "\x00" in value else None
    if isinstance(value, list):
        return next((found for i, item in enumerate(value) if (found := _nul(item, f"{path}[{i}]"))), None)
    if isinstance(value, dict):
        if any("\x00" in key for key in value):
            return path
        return next((found for key, item in value.items() if (found := _nul(item, f"{path}.{_clip(key)}"))), None)
    return None


def _shortened(message: str) -> str:
    """A message in which no name from the input takes more than its share. (Values, the validator never quotes.)"""
    return _clip(_QUOTED.sub(lambda m: m.group(1) + _clip(m.group(2)) + m.group(1), message), 2 * ECHO_CHARS)


def _clip(text: str, chars: int = ECHO_CHARS) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
