"""The simulated queue."""

from gateway.lab.review_queue import World, simulate


def test_rank_finds_violations_far_sooner_than_arrival() -> None:
    """At equal capacity at least three fifths of the mean time to catch a violation are saved, grave ones first, and
    nothing waits without bound.
    """
    for seed in (1, 2, 3):
        found = simulate(World(items=8000), seed)
        assert found.gain >= 0.6
        assert found.by_rank.grave_mean < found.by_rank.violations_mean
        assert found.by_rank.longest < 2 * found.first_in_first_out.longest


def test_the_same_seed_gives_the_same_stream() -> None:
    """A simulation can be repeated."""
    assert simulate(World(items=1000), 5) == simulate(World(items=1000), 5)
