"""JSON schemas: compiled, local, discreet."""

import pytest

from gateway.adapters.schema import Schema
from gateway.core.problems import InvalidConfig

SCHEMA = {
    "type": "object",
    "properties": {"message": {"type": "string", "maxLength": 5}, "context": {"items": {"type": "object"}}},
    "required": ["message"],
    "additionalProperties": False,
}


def test_a_valid_value_has_no_violations() -> None:
    """Silence is consent."""
    assert Schema(SCHEMA, "in.json").violations({"message": "hi"}) == ()


def test_violations_name_their_place_and_never_the_text() -> None:
    """An error text that quotes the message would put it into logs."""
    violations = Schema(SCHEMA, "in.json").violations({"message": "a secret text", "context": [{}, 7]})
    assert [path for path, _ in violations] == ["$.message", "$.context[1]"]
    assert not any("secret" in message for _, message in violations)


@pytest.mark.parametrize("document", [{"type": "objct"}, {"$ref": "http://127.0.0.1:9/x.json"}, [], {"pattern": "("}])
def test_what_is_no_schema_is_a_problem(document: object) -> None:
    """Wrong keywords, remote references and bad patterns are found when the task is loaded."""
    with pytest.raises(InvalidConfig) as caught:
        Schema(document, "in.json")
    assert caught.value.problems[0].file == "in.json"
