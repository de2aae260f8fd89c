"""Where teams hear of the outcomes of held items. Administrators say where; callers never do."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, put
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.core.errors import NotFound
from gateway.core.webhooks import Webhook, checked_url, new_secret
from gateway.web.audit import actor_of
from gateway.web.contract import contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import parse
from gateway.web.exchange import exchange_of
from gateway.web.limits import read_body
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]


class NewWebhook(Struct, frozen=True, forbid_unknown_fields=True):
    """`secret` refers to one that the gateway's machine holds (`env:NAME`, `file:PATH`); without it one is made."""

    url: Annotated[str, Meta(max_length=2000)]
    secret: Annotated[str, Meta(pattern=r"^(env|file):.+$")] | None = None


class WebhookView(Struct, frozen=True):
    """`secret` is shown once, by the answer that made it."""

    team: str
    url: str
    created_at: datetime
    secret: str | None = None


class WebhookPages:
    """One webhook a team."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings
        self._decoder = msgspec.json.Decoder(NewWebhook)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        path, missing = "/teams/{team:str}/webhook", (NotFound,)
        return (
            put(path, opt=contract("admin", body=NewWebhook, answer=WebhookView, errors=missing))(self.set_webhook),
            get(path, opt=contract("admin", answer=WebhookView, errors=missing))(self.show_webhook),
            delete(path, status_code=200, opt=contract("admin", answer=WebhookView, errors=missing))(
                self.remove_webhook
            ),
        )

    async def set_webhook(self, request: AnyRequest) -> Reply:
        """From now on the team hears there of what becomes of its held items, signed as Standard Webhooks are."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._decoder, await read_body(request, self._settings), self._settings)
        made = None if body.secret else new_secret()
        team = request.path_params["team"]
        webhook = Webhook(team, checked_url(body.url), body.secret or str(made), self._doors.clock.now())
        await self._doors.webhooks.put(webhook, actor_of(exchange.caller))
        return json_reply(WebhookView(team, webhook.url, webhook.created_at, made), exchange.headers())

    async def show_webhook(self, request: AnyRequest) -> Reply:
        """Where a team hears of outcomes. Never the secret."""
        webhook = await self._found(request.path_params["team"])
        view = WebhookView(webhook.team, webhook.url, webhook.created_at)
        return json_reply(view, exchange_of(request, self._doors.clock).headers())

    async def remove_webhook(self, request: AnyRequest) -> Reply:
        """The team hears nothing more; messages that wait become dead."""
        exchange = exchange_of(request, self._doors.clock)
        webhook = await self._found(request.path_params["team"])
        await self._doors.webhooks.remove(webhook.team, actor_of(exchange.caller))
        return json_reply(WebhookView(webhook.team, webhook.url, webhook.created_at), exchange.headers())

    async def _found(self, team: str) -> Webhook:
        webhook = await self._doors.webhooks.of_team(team)
        if webhook is None:
            raise NotFound("This team has no webhook.")
        return webhook
