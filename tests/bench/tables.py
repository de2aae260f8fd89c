"""What was measured, as tables."""

from collections.abc import Sequence

from msgspec import Struct
from rich.table import Table

from bench.paths import Path


class Row(Struct, frozen=True, kw_only=True):
    """One path through one worker. Milliseconds, at 64 connections unless it says otherwise.

    `alone` are the median and 99th percentile at one connection, less what the model stub takes; `steady_p99_ms` is at
    seven tenths of the load that it carries; `on_path` the share of requests that took the path; `other_core` how busy
    the core was on which stores, stub and driver run.
    """

    path: Path
    per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cpu_ms: float
    alone: tuple[float, float]
    steady_p99_ms: float
    on_path: float
    other_core: float

    @property
    def met(self) -> bool:
        """Whether the design's targets for one core are."""
        return self.per_s >= self.path.target_per_s and self.alone[0] <= 2 and self.alone[1] <= 10


class Worker(Struct, frozen=True):
    """What a worker takes: seconds until it is ready, memory in MB by requests answered so far."""

    ready_s: float
    memory_mb: Sequence[tuple[int, float]]


class Scaling(Struct, frozen=True):
    """Requests a second of a machine with all that runs on it: of one core and one worker, of two and two."""

    one: float
    two: float


def paths_table(rows: Sequence[Row], floor: Row) -> Table:
    """All paths, and the bare handler below them."""
    table = Table(title="One worker on one core, 64 connections")
    for name in ("path", "req/s", "target", "p50", "p90", "p99 ms", "CPU ms", "alone p50", "p99 ms", "p99 at 70 %"):
        table.add_column(name, justify="left" if name == "path" else "right", no_wrap=True)
    table.add_column("on path", justify="right")
    table.add_column("other core", justify="right")
    for row in (*rows, floor):
        target = f"{row.path.target_per_s:,}" if row.path.target_per_s else ""
        style = "yellow" if row.path.target_per_s and not row.met else ""
        table.add_row(
            row.path.name, f"{row.per_s:,.0f}", target, f"{row.p50_ms:.1f}", f"{row.p90_ms:.1f}", f"{row.p99_ms:.1f}",
            f"{row.cpu_ms:.3f}", f"{row.alone[0]:.2f}", f"{row.alone[1]:.2f}", f"{row.steady_p99_ms:.1f}",
            f"{row.on_path:.0%}", f"{row.other_core:.0%}", style=style,
        )  # fmt: skip
    return table


def worker_table(worker: Worker, scaling: Scaling) -> Table:
    """Start, memory, scaling."""
    table = Table("", "measured", "target", title="A worker")
    table.add_row("ready after", f"{worker.ready_s:.1f} s", "5 s")
    for requests, mb in worker.memory_mb:
        table.add_row(f"memory after {requests:,} requests", f"{mb:.0f} MB", "450 MB, flat")
    table.add_row("one worker, everything on one core", f"{scaling.one:,.0f} req/s", "")
    table.add_row("two workers, everything on two cores", f"{scaling.two:,.0f} req/s", "")
    table.add_row("two to one", f"{scaling.two / scaling.one:.2f}", "1.8")
    return table


def owners_table(shares: dict[str, list[tuple[str, float]]]) -> Table:
    """Where the time of each path goes, by owner."""
    table = Table(title="Where the interpreter's time goes (py-spy), %")
    table.add_column("owner")
    for name in shares:
        table.add_column(name, justify="right")
    total = {owner: sum(dict(each).get(owner, 0.0) for each in shares.values()) for owner in _owners(shares)}
    for owner in sorted(total, key=lambda each: -total[each]):
        table.add_row(owner, *(f"{dict(each).get(owner, 0.0) * 100:.0f}" for each in shares.values()))
    return table


def _owners(shares: dict[str, list[tuple[str, float]]]) -> set[str]:
    return {owner for each in shares.values() for owner, _ in each}
