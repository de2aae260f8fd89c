"""Webhooks on the wire: httpx sends, standardwebhooks signs (https://www.standardwebhooks.com, symmetric `v1`)."""

import asyncio
from binascii import Error as BadBase64
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


class HttpSender:
    """Core's Sender. Redirects are not followed: the address is what the administrator gave."""

    def __init__(self) -> None:
        limits = httpx.Limits(max_connections=50, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, follow_redirects=False, trust_env=False)

    async def send(self, message: Message, webhook: Webhook) -> str | None:
        """None where the receiver took it (2xx), else what went wrong in a few words. Never raises."""
        try:
            now = datetime.now(UTC)
            headers = signed(message, _secrets(webhook, now), now)
            post = self._client.stream("POST", webhook.url, content=message.body, headers=headers)
            # What the receiver says beyond its status is of no interest, however long it is.
            async with asyncio.timeout(TIMEOUT_S), post as response:
                return None if response.is_success else f"HTTP {response.status_code}"
        except (UnresolvedReference, EmptyWebhookSecretError, BadBase64):
            return "the secret cannot be used"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return type(error).__name__

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def signed(message: Message, secrets: Sequence[str], at: datetime) -> dict[str, str]:
    """The headers, with a signature by each secret. Raises EmptyWebhookSecretError or binascii.Error for one that is
    none.
    """
    return {
        "content-type": "application/json",
        "user-agent": "taskgate",
        "webhook-id": message.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(Signer(secret).sign(message.id, at, message.body) for secret in secrets),
    }


def _secrets(webhook: Webhook, at: datetime) -> list[str]:
    """The secret that counts, and the one before while it does: that may be taken away early. Raises
    UnresolvedReference for the first alone.
    """
    secrets = [resolve(webhook.secret)]
    if (former := webhook.former(at)) is not None:
        with suppress(UnresolvedReference):
            secrets.append(resolve(former))
    return secrets
