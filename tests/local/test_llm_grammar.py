"""The local server keeps its answers to a JSON schema, whatever the model would rather say."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

# Bounded, so that a random model comes to an end of it.
SCHEMA = {
    "type": "object",
    "properties": {
        "service": {"enum": ["cleaning", "garden"]},
        "place": {"type": ["string", "null"], "maxLength": 8},
        "budget": {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    },
    "required": ["service", "place", "budget"],
    "additionalProperties": False,
}
GRAMMAR = {"type": "json", "value": SCHEMA}
FITS = jsonschema_rs.validator_for(SCHEMA)


@pytest.fixture(scope="module")
async def http(llm_server: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=llm_server, timeout=60) as client:
        yield client


async def generate(http: httpx.AsyncClient, **parameters: Any) -> dict[str, Any]:
    wishes = {"max_new_tokens": 200, "details": True, **parameters}
    answer = await http.post("/generate", json={"inputs": "Clean my gutters.", "parameters": wishes})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("how", [{}, {"do_sample": True, "temperature": 5.0, "seed": 3}, {"repetition_penalty": 1.5}])
async def test_an_answer_is_valid_and_ends(http: httpx.AsyncClient, how: dict[str, Any]) -> None:
    """Greedy, hot or penalised: JSON that the schema allows, ended by the model's own end."""
    answer = await generate(http, grammar=GRAMMAR, **how)
    FITS.validate(json.loads(answer["generated_text"]))
    assert answer["details"]["finish_reason"] == "eos_token"


async def test_only_who_asks_is_bound(http: httpx.AsyncClient) -> None:
    """Answers with and without a grammar in one batch: the ones fit, the others are what they are alone."""
    alone = await generate(http, max_new_tokens=20)
    both = await asyncio.gather(*(generate(http, max_new_tokens=20) for _ in range(2)), generate(http, grammar=GRAMMAR))
    assert [answer["generated_text"] for answer in both[:2]] == [alone["generated_text"]] * 2
    FITS.validate(json.loads(both[2]["generated_text"]))


async def test_what_is_cut_off_is_a_beginning(http: httpx.AsyncClient) -> None:
    """`max_new_tokens` is kept all the same."""
    answer = await generate(http, grammar=GRAMMAR, max_new_tokens=5)
    assert answer["details"]["finish_reason"] == "length"
    assert answer["generated_text"] in ('{"ser', '{ "se')


async def test_a_chat_keeps_to_its_response_format(http: httpx.AsyncClient) -> None:
    """OpenAI's spelling of the same wish; text is no wish, and JSON of any kind is not served."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "temperature": 0}
    wish = {"type": "json_schema", "json_schema": {"name": "facts", "schema": SCHEMA}}
    answer = await http.post("/v1/chat/completions", json={**body, "response_format": wish})
    FITS.validate(json.loads(answer.json()["choices"][0]["message"]["content"]))
    statuses = [
        (await http.post("/v1/chat/completions", json={**body, "max_tokens": 1, "response_format": {"type": kind}}))
        for kind in ("text", "json_object")
    ]
    assert [answer.status_code for answer in statuses] == [200, 422]


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "regex", "value": "a+"},
        {"type": "json", "value": "a+"},
        {"type": "json", "value": {"type": "nothing"}},
        {"type": "json", "value": {"$ref": "#/nowhere"}},
        "json",
    ],
)
async def test_a_grammar_that_cannot_be_kept_is_refused(http: httpx.AsyncClient, grammar: object) -> None:
    """422 before any work, with the reason: whoever asks may ask again without."""
    answer = await http.post("/generate", json={"inputs": "hi", "parameters": {"grammar": grammar}})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert "grammar" in answer.json()["error"]
