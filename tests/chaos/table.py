"""What became of every request, a line for each thing that was broken."""

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct
from rich.table import Table

from chaos.load import Tally
from chaos.world import DEADLINE_S

_PATIENCE_S = 5.0
WORST_S = DEADLINE_S + 2 * _PATIENCE_S + 3.0
"""The model's deadline, the ledger's patience for a database that is away (once for the intent, once for the row), and
what a busy machine adds."""


class Result(Struct, frozen=True):
    """One line of the table."""

    event: str
    tally: Tally
    unrecorded: int
    notes: str

    @property
    def bad(self) -> bool:
        """Whether anything was lost, wrong, unrecorded or late, or nothing was asked."""
        told = self.tally
        return bool(told.lost or told.wrong or self.unrecorded or told.worst_s > WORST_S or told.total == 0)


def shown(result: Result) -> Result:
    """The result, told as soon as it is known."""
    told = result.tally
    why = f"{dict(Counter(told.lost))} {dict(Counter(told.wrong))} {result.unrecorded} {told.worst_s:.1f} s"
    print(f"{result.event}: {f'BAD {why}' if result.bad else 'ok'}, {told.total} requests", flush=True)
    return result


def table(results: Sequence[Result], title: str) -> Table:
    """All lines; the bad ones are red."""
    names = ("event", "answered", "deferred", "refused", "lost", "wrong", "no row", "worst s", "notes")
    lines = Table(*names, title=title)
    for each in results:
        told = each.tally
        refused = ", ".join(f"{count:,} {code}" for code, count in told.refused.items()) or "0"
        why = "; ".join([*sorted({*told.lost, *told.wrong})[:3], *([each.notes] if each.notes else [])])
        numbers = (told.answered, told.deferred, refused, len(told.lost), len(told.wrong), each.unrecorded)
        row = (each.event, *(n if isinstance(n, str) else f"{n:,}" for n in numbers), f"{told.worst_s:.1f}", why)
        lines.add_row(*row, style="red" if each.bad else "")
    return lines
