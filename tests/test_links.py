"""Requests that follow from each other: the links of the OpenAPI document, walked by a state machine."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from budgets import counting_model
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance
from stack import FILES, MANNERS, MIGRATIONS, MODELS, WORDS, gateway, make_home

from gateway.adapters.sql.access import new_key
from gateway.adapters.sql.migrate import upgrade
from gateway.local.child import free_port

# Without actions and with a model that nobody serves: whatever its rules do not know ends in 502.
ALONE = (
    MANNERS.partition("[actions]")[0]
    .replace('"tiny"', '"gone"')
    .replace("min_label_mass", "retries = 0\nmin_label_mass")
)
SERVER_ERRORS = {(502, "cascade_exhausted"), (503, "overloaded"), (503, "unavailable")}
BOUNDED = settings(
    max_examples=25,
    stateful_step_count=6,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# A 5xx with a name is an answer, also to input that is right; the key is always sent.
UNFIT: list[CheckFunction] = [not_a_server_error, positive_data_acceptance, ignored_auth]


@pytest.mark.timeout(300)
async def test_links_lead_where_the_document_says(tmp_path: Path, valkey: str) -> None:
    """Over a real gateway, from each answer along its links: documented answers only, runs are found and take
    feedback, and no 5xx but those with a name.
    """
    database = f"sqlite:///{tmp_path / 'gateway.db'}"
    await upgrade(database, MIGRATIONS)
    key = await new_key(database, "shop", frozenset({"invoke", "read", "review", "finance"}))
    home = make_home(tmp_path / "home", WORDS / "tokenizer.json", _alone())
    async with counting_model(WORDS) as (_, llm):
        with gateway(home, database, valkey, llm) as one:
            async with one.client(key) as client:
                document = await _narrowed(client)
            seen = await asyncio.to_thread(_walk, document, one.url, key)
    assert seen["POST /tasks/{task}/invoke", 200, None] > 0
    assert seen["POST /tasks/{task}/invoke", 502, "cascade_exhausted"] > 0
    assert seen["GET /tasks/{task}/runs/{run_id}", 200, None] > 5
    assert seen["POST /tasks/{task}/feedback", 201, None] > 5


def _alone() -> dict[str, str]:
    files = {name.replace("manners/", "alone/"): text for name, text in FILES.items() if name.startswith("tasks/")}
    gone = MODELS.replace("tiny", "gone", 1).replace("[[tiny", "[[gone").replace("env:LLM_URL", _nobody())
    return files | {"tasks/alone/task.toml": ALONE, "models.toml": MODELS + gone}


def _nobody() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def _narrowed(client: httpx.AsyncClient) -> dict[str, Any]:
    """The document with the tasks' own input schema in the place of any object, so that most inputs are runs."""
    document: dict[str, Any] = (await client.get("/schema")).json()
    schemas = [(await client.get(f"/tasks/{task}/input_schema")).json() for task in ("manners", "alone")]
    assert schemas[0] == schemas[1]
    document["components"]["schemas"]["InvokeBody"]["properties"]["input"] = schemas[0]
    return document


def _walk(document: dict[str, Any], url: str, key: str) -> Counter[tuple[str, int, str | None]]:
    """How often each operation ended with which status and error code. Raises where an answer breaks its promise."""
    seen: Counter[tuple[str, int, str | None]] = Counter()
    # Every operation by itself is exercised in tests/web/test_openapi.py.
    schema = schemathesis.openapi.from_dict(document).include(
        path_regex="^/tasks/{task}/(invoke|runs|feedback|versions)"
    )
    schema.config.generation.update(modes=[schemathesis.GenerationMode.POSITIVE])

    class Walk(schema.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": url, "headers": {"authorization": f"Bearer {key}"}}

        def validate_response(self, response: Response, case: schemathesis.Case, *_: Any, **kwargs: Any) -> None:
            code = response.json()["code"] if "problem" in response.headers["content-type"][0] else None
            seen[case.operation.label, response.status_code, code] += 1
            assert response.status_code < 500 or (response.status_code, code) in SERVER_ERRORS, response.content
            case.validate_response(response, excluded_checks=UNFIT, transport_kwargs=kwargs)

    Walk.run(settings=BOUNDED)
    return seen
