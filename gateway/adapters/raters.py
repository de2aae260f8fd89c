"""The one door to NLTK: agreement between raters, corrected for chance.

NLTK, because its measures follow Artstein and Poesio (2008) and its licence is ours; the library of Krippendorff's
name is under the GPL.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.core.agreement import Value


class NltkRaters:
    """Core's Raters. NLTK is imported at the first question: it takes a second, and few processes ever ask."""

    def kappa(self, pairs: Sequence[tuple[Value, Value]]) -> float | None:
        """Cohen's kappa of two raters; None where both only ever gave one value, the same."""
        if len({value for pair in pairs for value in pair}) < 2:
            return None
        return float(_task(pairs).kappa_pairwise("0", "1"))

    def alpha(self, items: Iterable[Sequence[Value]]) -> float | None:
        """Krippendorff's alpha for nominal values; None where nobody differed. Items rated once say nothing."""
        rated = [item for item in items if len(item) > 1]
        if len({value for item in rated for value in item}) < 2:
            return None
        return float(_task(rated).alpha())


def _task(items: Iterable[Sequence[Value]]) -> Any:
    from nltk.metrics.agreement import AnnotationTask  # type: ignore[import-untyped]

    return AnnotationTask([(str(c), str(i), value) for i, item in enumerate(items) for c, value in enumerate(item)])
