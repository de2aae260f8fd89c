"""Doors → the web application. The composition root calls `create_app`; nothing else builds one."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from gateway.web.api import Verbs
from gateway.web.audit import AuditPages
from gateway.web.auth import Doorkeeper, Keyring
from gateway.web.contract import contract_of
from gateway.web.doors import Doors, WebSettings
from gateway.web.health import HealthPages
from gateway.web.keys import KeyPages
from gateway.web.metrics import MetricsPage
from gateway.web.openai import ChatPages
from gateway.web.openapi import SchemaPage
from gateway.web.pages.wiring import create_pages, mounted
from gateway.web.problems import Handler
from gateway.web.quality import QualityPages
from gateway.web.reviews import ReviewPages
from gateway.web.runs import RunPages
from gateway.web.tasks import TaskPages
from gateway.web.teams import TeamPages
from gateway.web.usage import UsagePages
from gateway.web.versions import VersionPages
from gateway.web.webhooks import WebhookPages


def create_app(doors: Doors, settings: WebSettings, more: Sequence[HTTPRouteHandler] = ()) -> Litestar:
    """The application, with `more` routes. Raises LookupError for a route without a contract, or with its own hook."""
    keyring, verbs = Keyring(doors.keys, doors.clock), Verbs(doors, settings)
    routes = [
        *verbs.routes(),
        *ChatPages(doors, settings, verbs).routes(),
        *TaskPages(doors).routes(),
        *VersionPages(doors).routes(),
        *RunPages(doors, settings).routes(),
        *UsagePages(doors, settings).routes(),
        *KeyPages(doors, settings, keyring).routes(),
        *TeamPages(doors, settings).routes(),
        *AuditPages(doors).routes(),
        *ReviewPages(doors, settings).routes(),
        *WebhookPages(doors, settings).routes(),
        *QualityPages(doors, settings).routes(),
        *HealthPages(doors).routes(),
        *MetricsPage(doors).routes(),
        *more,
    ]
    doorkeeper = Doorkeeper(keyring, doors.clock, doors.telemetry.sampled)
    page = SchemaPage(routes, lambda: doors.registry().tasks, doors.clock)
    routes += page.routes()
    for route in routes:
        contract_of(route)
        if route.before_request is not None:
            raise LookupError(f"the route {sorted(route.paths)} would put its own hook in the doorkeeper's place")

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for enter in doors.lifespan:
                await stack.enter_async_context(enter())
            yield

    return Litestar(
        route_handlers=[*routes, mounted(create_pages(doors, settings, keyring, doorkeeper))],
        before_request=doorkeeper,
        exception_handlers={Exception: Handler(doors.clock, doors.telemetry.problem)},
        lifespan=[lifespan],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )
