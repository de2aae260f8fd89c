"""How right the machine is, from the runs that people judged, each weighted by how few others it stands for.

A stream falls into strata: what each stage cleared, what each held. The size of a stratum is known from the ledger; the
share of violations in it is estimated from the items of it that were drawn and judged, each weighted by the inverse of
its probability of being drawn (Horvitz and Thompson 1952), as a ratio of weighted sums (Hájek 1971). What cheap stages
cleared is sampled in two phases: the LLM looks at a share, and people at shares of what it flagged and of what it
cleared, which are cells of the stratum; the first phase estimates their sizes, the second the violations in each
(double sampling for stratification: Cochran, Sampling Techniques, 3rd ed., 12.2).

Intervals are of 95 %, by simulation: the violations of each cell, the sizes of cells and those of strata are drawn from
what they may be, given what was seen, and recall, precision and prevalence are computed of each draw. A violation that
got through is rare, so the counts behind recall are small, mostly 0 or 1, and the normal approximation that ratios of
weighted sums are usually given is of no use. The share of a cell is drawn from a Beta distribution on its effective
sample size (Kish: (Σw)² / Σw²; Korn and Graubard 1998 use it so): for the end at which violations are many from the
Jeffreys posterior (Brown, Cai and DasGupta 2001), for the end at which they are few from the one whose quantiles are
Clopper and Pearson's lower bounds. With a Jeffreys prior at both ends each cell without a hit would claim violations
that nobody saw, and stand for thousands of runs. An interval always holds its estimate.

A person's word counts as the truth. Nothing here imports a numeric library: gateways answer from it.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from math import sqrt

from msgspec import Struct

DRAWS = 2000
BINS = 10
COVERED = 0.99
"""Below this share of a side's runs in cells that anybody judged, nothing is said of the side."""
_SEED = 6
_LOW, _HIGH, _Z = 0.025, 0.975, 1.959964


class Estimate(Struct, frozen=True):
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Judgement(Struct, frozen=True):
    """One judged item; it stands for `weight` others of its cell, itself included. `score`: the deciding stage's."""

    violation: bool
    weight: float = 1.0
    score: float | None = None


class Cell(Struct, frozen=True):
    """A part of a stratum: `drawn` are the first phase's weights of the items that fell into it."""

    judged: Sequence[Judgement]
    drawn: Sequence[float] = (1.0,)


class Stratum(Struct, frozen=True):
    """`runs` of one stage that were all flagged (held or blocked), or all cleared."""

    runs: int
    flagged: bool
    cells: Sequence[Cell]


class Rates(Struct, frozen=True, kw_only=True):
    """None where too little of a side was judged to say."""

    recall: Estimate | None
    precision: Estimate | None
    prevalence: Estimate | None
    calibration_error: Estimate | None


class _Share(Struct, frozen=True):
    """A weighted share, as an effective number of items of which so many are hits."""

    hits: float
    of: float

    def drawn(self, dice: random.Random, few: bool = False) -> float:
        if not few:
            return dice.betavariate(self.hits + 0.5, self.of - self.hits + 0.5)
        return dice.betavariate(self.hits, self.of - self.hits + 1) if self.hits else 0.0


class _Side(Struct, frozen=True):
    """What was held, or cleared: an estimate of its violations and runs, and draws of both at either end."""

    value: tuple[float, float]
    few: list[tuple[float, float]]
    many: list[tuple[float, float]]


def rates(strata: Sequence[Stratum], draws: int = DRAWS) -> Rates:
    """Recall, precision, prevalence and calibration error of the stream that the strata make up."""
    strata = [stratum for stratum in strata if stratum.runs]
    dice = random.Random(_SEED)
    held, passed = (_side([s for s in strata if s.flagged is flagged], dice, draws) for flagged in (True, False))
    return Rates(
        recall=_recall(held, passed),
        precision=_precision(held),
        prevalence=_prevalence(held, passed),
        calibration_error=calibration_error(strata),
    )


def _recall(held: _Side | None, passed: _Side | None) -> Estimate | None:
    if held is None or passed is None or held.value[0] + passed.value[0] == 0:
        return None

    def recall(caught: tuple[float, float], missed: tuple[float, float]) -> float:
        return caught[0] / (caught[0] + missed[0]) if caught[0] + missed[0] else 1.0

    return _between(
        recall(held.value, passed.value),
        list(map(recall, held.few, passed.many)),
        list(map(recall, held.many, passed.few)),
    )


def _precision(held: _Side | None) -> Estimate | None:
    if held is None or held.value[1] == 0:
        return None
    value, few, many = held.value, held.few, held.many
    return _between(value[0] / value[1], [v / of for v, of in few], [v / of for v, of in many])


def _prevalence(held: _Side | None, passed: _Side | None) -> Estimate | None:
    if held is None or passed is None or held.value[1] + passed.value[1] == 0:
        return None

    def prevalence(one: tuple[float, float], other: tuple[float, float]) -> float:
        return (one[0] + other[0]) / (one[1] + other[1])

    return _between(
        prevalence(held.value, passed.value),
        list(map(prevalence, held.few, passed.few)),
        list(map(prevalence, held.many, passed.many)),
    )


def proportion(hits: float, of: float) -> Estimate | None:
    """A share with Wilson's interval, of whole counts or effective ones; None of nothing."""
    if of == 0:
        return None
    share, z2 = hits / of, _Z * _Z
    centre = (share + z2 / (2 * of)) / (1 + z2 / of)
    reach = _Z * sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return Estimate(share, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))


def calibration_error(strata: Iterable[Stratum]) -> Estimate | None:
    """Mean distance between score and share of violations, over ten bins of the score, by the runs in each.

    Chance alone makes a distance, so the estimate leans upwards, and draws around it lean once more: the interval is
    reflected at the estimate (the basic bootstrap: Davison and Hinkley 1997, 5.2), and ends at 0.
    """
    binned = _binned(strata)
    total = sum(weight for parts in binned.values() for weight, _, _ in parts)
    if not total:
        return None

    def error(share_of: Callable[[_Share], float]) -> float:
        gaps = 0.0
        for parts in binned.values():
            gaps += abs(sum(weight * (score - share_of(share)) for weight, score, share in parts))
        return gaps / total

    value, dice = error(lambda share: share.hits / share.of), random.Random(_SEED)
    low, high = _quantiles([error(lambda share: share.drawn(dice)) for _ in range(DRAWS)])
    return Estimate(value, max(0.0, min(value, 2 * value - high)), max(value, 2 * value - low))


def _binned(strata: Iterable[Stratum]) -> dict[int, list[tuple[float, float, _Share]]]:
    """Per bin, of each cell that has items in it: the runs it stands for, their mean score, the share of violations."""
    binned: dict[int, list[tuple[float, float, _Share]]] = {}
    for stratum in strata:
        sizes = _sizes(stratum)
        for cell, size in zip(stratum.cells, sizes, strict=True):
            everything = sum(j.weight for j in cell.judged)
            inside: dict[int, list[Judgement]] = {}
            for judged in cell.judged:
                if judged.score is not None:
                    inside.setdefault(min(int(judged.score * BINS), BINS - 1), []).append(judged)
            for place, some in inside.items():
                weight = sum(j.weight for j in some)
                score = sum(j.weight * (j.score or 0.0) for j in some) / weight
                runs = stratum.runs * size.hits / size.of * weight / everything
                binned.setdefault(place, []).append((runs, score, _share(some)))
    return binned


def _side(strata: Sequence[Stratum], dice: random.Random, draws: int) -> _Side | None:
    """None where too little of it was judged."""
    runs = sum(stratum.runs for stratum in strata)
    parts = [
        (stratum.runs, [(size, _share(cell.judged)) for size, cell in _cells(stratum) if cell.judged])
        for stratum in strata
    ]
    covered = sum(of * size.hits / size.of for of, cells in parts for size, _ in cells)
    if covered < COVERED * runs:
        return None
    violations = sum(of * size.hits / size.of * share.hits / share.of for of, cells in parts for size, share in cells)

    def drawn(few: bool) -> tuple[float, float]:
        found = total = 0.0
        for of, cells in parts:
            size = dice.gammavariate(of, 1.0)
            total += size
            found += size * sum(_size(part, dice) * share.drawn(dice, few) for part, share in cells)
        return found, total

    return _Side((violations, runs), *([drawn(few) for _ in range(draws)] for few in (True, False)))


def _cells(stratum: Stratum) -> list[tuple[_Share, Cell]]:
    return [(size, cell) for size, cell in zip(_sizes(stratum), stratum.cells, strict=True) if size.hits]


def _sizes(stratum: Stratum) -> list[_Share]:
    """The share of a stratum's runs that each cell has, by the first phase's weights."""
    drawn = [weight for cell in stratum.cells for weight in cell.drawn]
    total, squares = sum(drawn), sum(weight * weight for weight in drawn)
    effective = total * total / squares if squares else 1.0
    return [_Share(effective * sum(cell.drawn) / total if total else 0.0, effective) for cell in stratum.cells]


def _size(size: _Share, dice: random.Random) -> float:
    """A stratum of one cell has no first phase."""
    return 1.0 if size.hits >= size.of else size.drawn(dice)


def _share(judged: Sequence[Judgement]) -> _Share:
    total = sum(j.weight for j in judged)
    effective = total * total / sum(j.weight * j.weight for j in judged)
    return _Share(effective * sum(j.weight for j in judged if j.violation) / total, effective)


def _between(value: float, low: list[float], high: list[float]) -> Estimate:
    return Estimate(value, min(value, _quantiles(low)[0]), max(value, _quantiles(high)[1]))


def _quantiles(values: list[float]) -> tuple[float, float]:
    values.sort()
    return values[int(_LOW * len(values))], values[min(int(_HIGH * len(values)), len(values) - 1)]
