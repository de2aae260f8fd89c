"""Where teams hear of the outcomes of held items. Administrators say where; callers never do."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post, put
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


Reference = Annotated[str, Meta(pattern=r"^(env|file):.+$")]


class NewWebhook(Struct, frozen=True, forbid_unknown_fields=True):
    """`secret` refers to one that the gateway's machine holds (`env:NAME`, `file:PATH`); without it one is made."""

    url: Annotated[str, Meta(max_length=2000)]
    secret: Reference | None = None


class NewSecret(Struct, frozen=True, forbid_unknown_fields=True):
    """`secret` as for a new webhook. `overlap_s`: how long messages are signed with the secret before it, too; at most
    30 days.
    """

    secret: Reference | None = None
    overlap_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 86_400


class WebhookView(Struct, frozen=True):
    """`secret` is shown once, by the answer that made it. `former_until`: when the secret before it ends, or ended."""

    team: str
    url: str
    created_at: datetime
    secret: str | None = None
    former_until: datetime | None = None


class WebhookPages:
    """One webhook a team."""

    def __init__(self, doors: Doors, settings: WebSettings) -> None:
        self._doors, self._settings = doors, settings
        self._decoder, self._secret_decoder = msgspec.json.Decoder(NewWebhook), msgspec.json.Decoder(NewSecret)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        path, missing = "/teams/{team:str}/webhook", (NotFound,)
        return (
            put(path, opt=contract("admin", body=NewWebhook, answer=WebhookView, errors=missing))(self.set_webhook),
            get(path, opt=contract("admin", answer=WebhookView, errors=missing))(self.show_webhook),
            post(
                f"{path}/rotate",
                status_code=200,
                opt=contract("admin", body=NewSecret, answer=WebhookView, errors=missing),
            )(self.rotate_secret),
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
        return json_reply(_view(webhook, made), exchange.headers())

    async def show_webhook(self, request: AnyRequest) -> Reply:
        """Where a team hears of outcomes. Never the secret."""
        webhook = await self._found(request.path_params["team"])
        return json_reply(_view(webhook), exchange_of(request, self._doors.clock).headers())

    async def rotate_secret(self, request: AnyRequest) -> Reply:
        """Another secret. Through the overlap messages carry two signatures, so the receiver changes when it likes."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._secret_decoder, await read_body(request, self._settings), self._settings)
        made = None if body.secret else new_secret()
        team, overlap = request.path_params["team"], timedelta(seconds=body.overlap_s)
        secret, now = body.secret or str(made), self._doors.clock.now()
        webhook = await self._doors.webhooks.rotate(team, secret, now, overlap, actor_of(exchange.caller))
        return json_reply(_view(webhook, made), exchange.headers())

    async def remove_webhook(self, request: AnyRequest) -> Reply:
        """The team hears nothing more; messages that wait become dead."""
        exchange = exchange_of(request, self._doors.clock)
        webhook = await self._found(request.path_params["team"])
        await self._doors.webhooks.remove(webhook.team, actor_of(exchange.caller))
        return json_reply(_view(webhook), exchange.headers())

    async def _found(self, team: str) -> Webhook:
        webhook = await self._doors.webhooks.of_team(team)
        if webhook is None:
            raise NotFound("This team has no webhook.")
        return webhook


def _view(webhook: Webhook, made: str | None = None) -> WebhookView:
    return WebhookView(webhook.team, webhook.url, webhook.created_at, made, webhook.former_until)
