"""Keys: create, list, rotate, revoke. A secret is in the answer that creates it and nowhere else."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta, Struct

from gateway.core.errors import NotFound
from gateway.core.keys import ApiKey, KeyScope, mint
from gateway.core.task import Name
from gateway.web.audit import actor_of
from gateway.web.auth import Keyring
from gateway.web.contract import Query, contract
from gateway.web.doors import Doors, WebSettings
from gateway.web.envelope import invalid, parse
from gateway.web.exchange import exchange_of
from gateway.web.limits import read_body
from gateway.web.reply import Reply, json_reply

AnyRequest = Request[Any, Any, Any]

_TEAM = Query("team", "List the keys of this team only.", {"type": "string"})


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key for a team. Without `expires_at` (an instant with its offset) it lasts until it is revoked."""

    team: Name
    scopes: Annotated[tuple[KeyScope, ...], Meta(min_length=1)]
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class Rotation(Struct, frozen=True, forbid_unknown_fields=True):
    """How long the old key goes on working beside the new one, in seconds; at most 30 days."""

    overlap_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 86_400


class KeyView(Struct, frozen=True):
    """A key without its secret."""

    id: str
    team: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class CreatedKey(Struct, frozen=True):
    """`key` is the full text. It is shown this once."""

    key: str
    info: KeyView


class KeyList(Struct, frozen=True):
    """Keys, oldest first."""

    keys: list[KeyView]


class KeyPages:
    """Administration of keys."""

    def __init__(self, doors: Doors, settings: WebSettings, keyring: Keyring) -> None:
        self._doors, self._settings, self._keyring = doors, settings, keyring
        self._new_decoder = msgspec.json.Decoder(NewKey)
        self._rotation_decoder = msgspec.json.Decoder(Rotation)

    def routes(self) -> Sequence[HTTPRouteHandler]:
        """The handlers with their paths and contracts."""
        missing = (NotFound,)
        create = contract("admin", body=NewKey, answer=CreatedKey, status=201, errors=missing)
        rotate = contract("admin", body=Rotation, answer=CreatedKey, status=201, errors=missing)
        revoke = contract("admin", answer=KeyView, errors=missing)
        return (
            post("/keys", status_code=201, opt=create)(self.create_key),
            get("/keys", opt=contract("admin", answer=KeyList, query=(_TEAM,)))(self.list_keys),
            post("/keys/{key_id:str}/rotate", status_code=201, opt=rotate)(self.rotate_key),
            delete("/keys/{key_id:str}", status_code=200, opt=revoke)(self.revoke_key),
        )

    async def create_key(self, request: AnyRequest) -> Reply:
        """A new key for a team. The answer holds the secret; it cannot be had again."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._new_decoder, await read_body(request, self._settings), self._settings)
        if body.expires_at is not None and body.expires_at <= self._doors.clock.now():
            raise invalid("The key would never work.", ("$.expires_at", "lies in the past"))
        key, text = mint(body.team, frozenset(body.scopes), self._doors.clock.now(), body.expires_at)
        await self._doors.keys.add(key, actor_of(exchange.caller))
        return json_reply(CreatedKey(text, _view(key)), exchange.headers(), 201)

    async def list_keys(self, request: AnyRequest) -> Reply:
        """All keys, or those of one team, without their secrets."""
        keys = await self._doors.keys.of_team(request.query_params.get("team"))
        view = KeyList([_view(key) for key in keys])
        return json_reply(view, exchange_of(request, self._doors.clock).headers())

    async def rotate_key(self, request: AnyRequest) -> Reply:
        """A new key with the team and the scopes of an old one, which stops working after the overlap."""
        exchange = exchange_of(request, self._doors.clock)
        body = parse(self._rotation_decoder, await read_body(request, self._settings), self._settings)
        now, old = self._doors.clock.now(), await self._doors.keys.find(request.path_params["key_id"])
        if old is None or not old.usable(now):
            raise NotFound("There is no such key in use.")
        new, text = mint(old.team, old.scopes, now, old.expires_at)
        until = now + timedelta(seconds=body.overlap_s)
        await self._doors.keys.rotate(old.id, new, until, actor_of(exchange.caller))
        self._keyring.forget(old.id)
        return json_reply(CreatedKey(text, _view(new)), exchange.headers(), 201)

    async def revoke_key(self, request: AnyRequest) -> Reply:
        """From now on the key is refused: here at once, by every other replica within two seconds."""
        exchange = exchange_of(request, self._doors.clock)
        key_id = request.path_params["key_id"]
        await self._doors.keys.revoke(key_id, self._doors.clock.now(), actor_of(exchange.caller))
        self._keyring.forget(key_id)
        if (key := await self._doors.keys.find(key_id)) is None:
            raise NotFound("There is no such key.")
        return json_reply(_view(key), exchange.headers())


def _view(key: ApiKey) -> KeyView:
    return KeyView(key.id, key.team, sorted(key.scopes), key.created_at, key.expires_at, key.revoked_at)
