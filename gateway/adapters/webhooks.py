"""Webhooks on the wire: httpx sends, standardwebhooks signs (https://www.standardwebhooks.com, symmetric `v1`)."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import httpx
from standardwebhooks.webhooks import EmptyWebhookSecretError
from standardwebhooks.webhooks import Webhook as Signer

from gateway.adapters.references import UnresolvedReference, resolve
from gateway.core.webhooks import Message, Webhook

# Shorter than the courier's claim of a message: nobody else sends it meanwhile.
TIMEOUT_S = 10.0
# ValueError: what is no base64, or no text.
_NO_SECRET = (UnresolvedReference, EmptyWebhookSecretError, ValueError)


class HttpSender:
    """Core's Sender. Redirects are not followed: the address is what the administrator gave."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, follow_redirects=False, trust_env=False)

    async def send(self, message: Message, webhook: Webhook) -> str | None:
        """None where the receiver took it (2xx), else what went wrong in a few words. Never raises."""
        now = datetime.now(UTC)
        try:
            headers = signed(message, _signers(webhook, now), now)
        except _NO_SECRET:
            return "the secret cannot be used"
        try:
            post = self._client.stream("POST", webhook.url, content=message.body, headers=headers)
            # What the receiver says beyond its status is of no interest, however long it is.
            async with asyncio.timeout(TIMEOUT_S), post as response:
                return None if response.is_success else f"HTTP {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, TimeoutError) as error:
            # ValueError: an address, even one to be redirected to, whose name is none.
            return type(error).__name__

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def signed(message: Message, signers: Sequence[Signer], at: datetime) -> dict[str, str]:
    """The headers, with a signature by each."""
    return {
        "content-type": "application/json",
        "user-agent": "taskgate",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signer.sign(message.id, at, message.body) for signer in signers),
    }


def _signers(webhook: Webhook, at: datetime) -> list[Signer]:
    """By the secret that counts, and by the one before while it does, unless that was taken away or is none.

    Raises one of _NO_SECRET for the first alone.
    """
    signers = [Signer(resolve(webhook.secret))]
    if (former := webhook.former(at)) is not None:
        with suppress(*_NO_SECRET):
            signers.append(Signer(resolve(former)))
    return signers
