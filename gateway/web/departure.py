"""From SIGTERM to the end: first everybody hears that no more traffic is wanted, and only then the listener closes.

A load balancer needs a moment to see that a replica is not ready any more. Until then it sends requests, and they are
answered; one that stopped listening at once would lose what is on its way.
"""

import asyncio
import signal

import structlog

log = structlog.get_logger()


class Departure:
    """Turns SIGTERM into SIGINT, `leave_s` later; the server ends on either. `begun` from the first signal on."""

    def __init__(self, leave_s: float) -> None:
        self._leave_s = leave_s
        self.begun = False

    def watch(self) -> None:
        """Take SIGTERM over from the server. For the main thread, within the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._begin)

    def _begin(self) -> None:
        if self.begun or self._leave_s <= 0:
            # Whoever asks twice is in a hurry.
            self._leave()
            return
        self.begun = True
        log.info("leaving", after_s=self._leave_s)
        asyncio.get_running_loop().call_later(self._leave_s, self._leave)

    def _leave(self) -> None:
        self.begun = True
        signal.raise_signal(signal.SIGINT)
