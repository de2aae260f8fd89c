"""The route table, its contracts, and the document made from them."""

import asyncio
import re

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from in_memory import Memory
from litestar import Request, get
from litestar.routes import HTTPRoute
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from gateway.core import errors
from gateway.core.keys import SCOPES
from gateway.web.contract import contract, contract_of
from gateway.web.doors import WebSettings
from gateway.web.problems import TITLES
from gateway.web.reply import Reply
from gateway.web.wiring import create_app

PUBLIC = {"/health/live", "/health/ready", "/schema"}
ERRORS = {
    error.code: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.GatewayError)
}


def routes():
    """(path, method, handler) of everything that the application answers, but the reviewer's page: see test_desk."""
    app = create_app(Memory().doors(), WebSettings())
    (desk,) = (route for route in app.routes if not isinstance(route, HTTPRoute))
    assert desk.path == "/desk"
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            for method in handler.http_methods - {"OPTIONS"}:
                yield route.path, method, handler


def at(path):
    """An address of the route: a task that exists, and nothing else that does."""
    return re.sub(r"{\w+:str}", "x", path.replace("{task:str}", "message-moderation"))


def test_no_route_is_without_a_scope_but_health_and_schema():
    """Whoever adds a route says who may call it; the public ones are these and no others."""
    public = {path for path, _, handler in routes() if contract_of(handler).public}
    assert public == PUBLIC
    for _, _, handler in routes():
        assert contract_of(handler).scopes <= set(SCOPES)


def test_a_route_without_a_contract_does_not_start():
    """The application is not built with a route that forgot its contract."""

    @get("/forgotten")
    async def forgotten() -> Reply:
        return Reply(b"", [])

    with pytest.raises(LookupError, match="/forgotten"):
        create_app(Memory().doors(), WebSettings(), more=[forgotten])


def test_a_route_with_a_hook_of_its_own_does_not_start():
    """The framework would call that hook in the doorkeeper's place, and the route would stand open."""

    async def hook(_: Request) -> None:
        return

    @get("/open", opt=contract("admin", answer=None), before_request=hook)
    async def hooked() -> Reply:
        return Reply(b"", [])

    with pytest.raises(LookupError, match="/open"):
        create_app(Memory().doors(), WebSettings(), more=[hooked])


async def test_every_route_but_the_public_ones_refuses_a_caller_without_a_key(serve):
    """Walking the table without a key: 401 everywhere, also for methods that a page does not answer."""
    async with serve() as served:
        del served.client.headers["authorization"]
        for path, method, handler in routes():
            if contract_of(handler).public:
                continue
            response = await served.client.request(method, at(path))
            assert response.status_code in (401, 429), (method, path)
            kind = "application/problem+json" if contract_of(handler).error is None else "application/json"
            assert response.headers["content-type"] == kind


async def test_every_route_wants_one_of_its_scopes_and_no_other_will_do(served):
    """Walking the table with a key of all other scopes: 403 everywhere, naming what is needed; with one of each of
    the route's own: never that.
    """
    for path, method, handler in routes():
        wanted = contract_of(handler).scopes
        keys = {scope: served.memory.key("market", scope) for scope in wanted}
        keys |= {"none": served.memory.key("market", *(set(SCOPES) - wanted))} if wanted else {}
        for scope, key in keys.items():
            response = await served.client.request(method, at(path), headers=served.with_key(key))
            lacks = response.status_code == 403 and f"lacks the scope `{' or '.join(sorted(wanted))}`" in response.text
            assert lacks == (scope == "none"), (method, path, scope, response.text)


@pytest.mark.parametrize(("method", "path", "status", "code"), [
    ("GET", "/nowhere", 404, "not_found"),
    ("GET", "/tasks/a/b/c/d", 404, "not_found"),
    ("PATCH", "/tasks", 405, "method_not_allowed"),
    ("OPTIONS", "/tasks", 405, "method_not_allowed"),
    ("DELETE", "/health/live", 405, "method_not_allowed"),
])  # fmt: skip
async def test_what_no_route_answers_is_a_problem_too(served, method, path, status, code):
    """Unknown pages and methods get problem documents with a request id, like every other error."""
    response = await served.client.request(method, path)
    problem = response.json()
    assert (response.status_code, problem["code"], problem["status"]) == (status, code, status)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == problem["request_id"]
    if status == 405:
        assert response.headers["allow"] == {"/tasks": "GET", "/health/live": "GET"}[path]


async def test_the_document_names_every_route_and_every_code(served):
    """Each route has a summary, its scopes and its errors; each error that a route can give has its text."""
    document = (await served.client.get("/schema", headers={"authorization": ""})).json()
    assert document["openapi"].startswith("3.1")
    for path, method, handler in routes():
        operation = document["paths"][path.replace(":str", "")][method.lower()]
        promised = contract_of(handler)
        assert operation["summary"], path
        assert operation.get("x-scopes", []) == sorted(promised.scopes)
        for error in promised.errors:
            assert f"`{error.code}`" in operation["responses"][str(error.status)]["description"]
    assert document["paths"]["/tasks/{task}/invoke"]["post"]["parameters"][0]["schema"]["enum"] == [
        "message-moderation",
        "request-routing",
    ]


def test_every_error_has_a_title_and_a_docstring():
    """The titles of problem documents and the classes of errors are the same set."""
    assert set(TITLES) == set(ERRORS)
    assert all(error.__doc__ for error in ERRORS.values())


async def test_answers_are_what_the_document_says(served):
    """Real answers and problems are valid under the schemas that are published for them."""
    document = (await served.client.get("/schema")).json()

    def validator(name: str):
        return jsonschema_rs.validator_for(
            {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        )

    item = {"message": "spam", "sender_role": "pro"}
    invoked = await served.client.post("/tasks/message-moderation/invoke", json={"input": item})
    batch = await served.client.post("/tasks/message-moderation/batch", json={"inputs": [item, {}]})
    run = await served.client.get(f"/tasks/message-moderation/runs/{invoked.json()['metadata']['run_id']}")
    refused = await served.client.post("/tasks/message-moderation/invoke", json={"input": {}})
    exhausted = await served.client.post("/tasks/request-routing/invoke", json={"input": {"text": "break"}})
    validator("InvokeAnswer").validate(invoked.json())
    validator("BatchAnswer").validate(batch.json())
    validator("RunAnswer").validate(run.json())
    for response in (refused, exhausted):
        validator("Problem").validate(response.json())


async def test_a_bug_says_nothing_of_itself(serve):
    """An unexpected exception is 500 `internal` with a request id, and not a word of what broke."""
    from gateway.web.contract import contract

    @get("/broken", opt=contract("read", answer=str))
    async def broken() -> Reply:
        raise RuntimeError("the secret is 12345")

    async with serve(more=[broken]) as served:
        response = await served.client.get("/broken")
        assert (response.status_code, response.json()["code"]) == (500, "internal")
        assert "12345" not in response.text


async def test_generated_requests_get_documented_answers(served):
    """What a generator makes of the document, valid or not, is answered with a documented status and a valid body."""
    document = (await served.client.get("/schema")).json()
    await asyncio.to_thread(exercise, document, served.url, served.memory.tokens["market"])


def exercise(document: dict[str, object], url: str, key: str) -> None:
    """A few generated requests for every operation. Raises where an answer breaks its promise."""
    # A task's own input schema is narrower than the document can say; the key is always sent.
    unfit = [positive_data_acceptance, ignored_auth]
    schema = schemathesis.openapi.from_dict(document)
    for result in schema.get_all_operations():

        @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=result.ok().as_strategy())
        def answered(case: schemathesis.Case) -> None:
            headers = {"authorization": f"Bearer {key}"}
            case.call_and_validate(base_url=url, headers=headers, excluded_checks=unfit)

        answered()
