"""The breaker of a replica, by an explicit clock."""

from gateway.adapters.replicas import Breaker


def test_a_few_failures_do_not_open_it() -> None:
    """Below five failures in a row everybody passes; a success in between starts the count anew."""
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(4):
        breaker.failed(0.0)
    assert breaker.admits(0.0)
    breaker.failed(0.0)
    assert not breaker.admits(0.0)


def test_a_refused_connection_opens_it_at_once() -> None:
    """One refused connection is enough, for half a second."""
    breaker = Breaker()
    breaker.failed(10.0, at_once=True)
    assert not breaker.admits(10.4)
    assert breaker.admits(10.5)


def test_one_probe_at_a_time() -> None:
    """After the rest a single request passes; the others go on failing fast until it has succeeded."""
    breaker = Breaker()
    breaker.failed(0.0, at_once=True)
    breaker.begins()
    assert not breaker.admits(0.6)
    breaker.succeeded()
    breaker.begins()
    assert breaker.admits(0.6)


def test_rests_grow_to_a_bound() -> None:
    """Each failed probe doubles the rest, up to two seconds, so that healing is never far away."""
    breaker, now, rests = Breaker(), 0.0, []
    for _ in range(5):
        breaker.failed(now, at_once=True)
        rest = next(r / 10 for r in range(100) if breaker.admits(now + r / 10))
        rests.append(rest)
        now += rest
    assert rests == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_requests_that_fail_together_count_once() -> None:
    """Sixty requests that were under way when a server died do not make the rest any longer."""
    breaker = Breaker()
    for _ in range(60):
        breaker.failed(0.0, at_once=True)
    assert breaker.admits(0.5)


def test_an_abandoned_probe_frees_its_place() -> None:
    """A probe whose caller went away lets the next one probe."""
    breaker = Breaker()
    breaker.failed(0.0, at_once=True)
    breaker.begins()
    breaker.abandoned()
    assert breaker.admits(0.5)
