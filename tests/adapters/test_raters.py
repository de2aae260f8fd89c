"""Agreement of raters: another library and the published example say the same."""

import random

import pytest
from sklearn.metrics import cohen_kappa_score

from gateway.adapters.raters import NltkRaters

RATERS = NltkRaters()


def test_kappa_is_that_of_scikit_learn() -> None:
    """Over random pairs of raters of two and three values; and none where both always say the same."""
    dice = random.Random(1)
    for values in ("ab", "abc"):
        for _ in range(20):
            pairs = [(dice.choice(values), dice.choice(values)) for _ in range(dice.randint(5, 60))]
            expected = cohen_kappa_score([a for a, _ in pairs], [b for _, b in pairs])
            assert RATERS.kappa(pairs) == pytest.approx(expected)
    assert RATERS.kappa([("a", "a")] * 5) is None
    assert RATERS.kappa([]) is None


def test_alpha_is_that_of_the_published_example() -> None:
    """Krippendorff 2011, example C: four observers, twelve units, nominal data, alpha 0.743."""
    rows = (
        (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
        (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
        (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
        (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
    )
    units = [[str(value) for value in unit if value is not None] for unit in zip(*rows, strict=True)]
    assert RATERS.alpha(units) == pytest.approx(0.743, abs=0.0005)


def test_alpha_of_one_value_alone_is_none() -> None:
    """Where nobody ever differed there is no disagreement to expect."""
    assert RATERS.alpha([["a", "a"], ["a", "a"]]) is None
    assert RATERS.alpha([["a"], ["b"]]) is None
