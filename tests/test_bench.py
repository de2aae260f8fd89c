"""That `make bench` measures what it says; how fast anything is, is no matter of tests."""

import os
import sys
from collections import Counter
from itertools import islice

import pytest
import uvloop
from bench import messages
from bench.driver import Target, drive
from bench.ground import ground, on_cores
from bench.measure import SHORT, Bench
from bench.paths import HIT, REFUSED
from bench.tables import paths_table
from bench.where import by_owner
from msgspec.structs import replace

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="make bench is for Linux and two cores"
)


def test_no_message_comes_twice() -> None:
    """A message that was asked before would be answered by the cache."""
    for kind in (messages.clear, messages.open_):
        assert len(set(islice(kind(), 20_000))) == 20_000


def test_time_belongs_to_the_innermost_owner() -> None:
    """What a library does for one of our modules is that module's; what nobody owns is told, too."""
    stacks = Counter({("serve (granian/x.py:1)", "_write (gateway/adapters/sql/ledger.py:9)", "copy (copy.py:2)"): 3,
                      ("_start (nowhere.py:1)",): 1})  # fmt: skip
    assert by_owner(stacks) == [("ledger: rows and COPY", 0.75), ("other", 0.25)]


def test_a_gateway_is_measured() -> None:
    """Requests take the path that a row is about, an open driver asks as often as it should, and the table is whole."""
    lengths = replace(SHORT, requests=64)
    with ground() as on, on_cores([on.other_core]):
        bench = Bench(on, lengths)
        floor = uvloop.run(bench.floor())
        rows, worker, _ = uvloop.run(bench.paths((HIT, REFUSED)))
        with on.floor() as served:
            seen = uvloop.run(drive(Target(served.port, "/tasks/any/invoke"), iter([b'{"input":{}}'] * 99), 2, 0.5, 40))
    assert [row.path for row in rows] == [HIT, REFUSED]
    assert all(row.on_path > 0.9 and row.cpu_ms > 0 and row.p50_ms <= row.p99_ms for row in (*rows, floor))
    assert worker.ready_s > 0
    assert seen.statuses == {200: 21}
    assert paths_table(rows, floor).row_count == 3
