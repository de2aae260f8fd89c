"""The worker processes, and the application that each of them serves."""

import os
import resource
import sys
from tempfile import TemporaryDirectory

from litestar import Litestar

from gateway import settings as process_settings
from gateway.adapters.logs import configure_logs
from gateway.app.process import Process
from gateway.core.problems import InvalidConfig
from gateway.settings import Settings

_MOST_HEAD_BYTES = 65_536
_OTHER_FILES = 200


def create() -> Litestar:
    """The application of one worker process, from its environment. Ends the process where that is wrong."""
    try:
        settings = process_settings.read(os.environ)
        configure_logs(settings.log)
        return Process(settings).app()
    except InvalidConfig as error:
        # The server that calls this would show a traceback, and hide the list in it.
        sys.exit(f"{len(error.problems)} problem(s)\n{error}")


def serve(settings: Settings, target: str = "gateway.app:create") -> None:
    """Run the workers until SIGTERM or SIGINT. One that cannot start ends them all."""
    from granian import Granian
    from granian.constants import Interfaces, Loops
    from granian.http import HTTP1Settings

    granian = Granian(
        target,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        workers=settings.workers,
        loop=Loops.uvloop,
        factory=True,
        websockets=False,
        # A client has as long for its head as for its body; what does not fit the buffer is refused.
        http1_settings=HTTP1Settings(
            header_read_timeout=int(settings.body_timeout_s * 1000), max_buffer_size=_MOST_HEAD_BYTES
        ),
        log_access=False,
        log_level="warning",  # type: ignore[arg-type]
        # Of connections, and not of requests: beyond the permits the application itself answers 503.
        backpressure=_connections(settings.connections),
        workers_kill_timeout=int(settings.leave_s + settings.drain_s) + 5,
    )
    with TemporaryDirectory(prefix="taskgate-metrics-") as folder:
        # The workers write what they measure to files in here, so that whichever is asked can show the sums.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        granian.serve()


def _connections(wanted: int) -> int:
    """As many as wanted, or as the system's limit of open files allows; the soft one is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted + _OTHER_FILES if hard == resource.RLIM_INFINITY else min(wanted + _OTHER_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    return max(1, min(wanted, max(soft, allowed) - _OTHER_FILES))
