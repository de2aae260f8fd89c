"""The one door to jsonschema-rs: JSON schemas that are compiled once, never fetch, and never echo what they reject."""

from collections.abc import Sequence
from typing import Any

import jsonschema_rs

from gateway.core.problems import InvalidConfig, Problem

# Patterns run in linear time, whatever a schema's author wrote.
_LINEAR = jsonschema_rs.RegexOptions()


class Schema:
    """A compiled JSON schema, draft 2020-12 unless it says otherwise."""

    def __init__(self, document: Any, file: str) -> None:
        """Raises InvalidConfig where `document` is no schema."""
        if not isinstance(document, dict):
            raise InvalidConfig([Problem(file, "", "a JSON schema is an object")])
        try:
            jsonschema_rs.meta.validate(document)
            self._compiled = jsonschema_rs.validator_for(
                document, mask="the value", retriever=_no_fetching, pattern_options=_LINEAR
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
            path = json_path(getattr(error, "instance_path", ()))
            raise InvalidConfig([Problem(file, path, str(error).split("\n", 1)[0])]) from error

    def violations(self, value: object) -> Sequence[tuple[str, str]]:
        """(JSON path, message) of each violation; empty for a valid value. Messages hold no text of the value."""
        if self._compiled.is_valid(value):
            return ()
        return [(json_path(error.instance_path), error.message) for error in self._compiled.iter_errors(value)]


def json_path(parts: Sequence[str | int]) -> str:
    """["context", 0, "message"] → `$.context[0].message`."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _no_fetching(uri: str) -> Any:
    raise ValueError(f"a schema may only refer to itself, not to {uri}")
