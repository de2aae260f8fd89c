"""Distillation: the prefilter learns what the fine-tuned LLM thinks of its training rows, mixed with their labels.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015): soft targets at a temperature. A row
that is disguised or joined to another while training keeps the target of its plain text, as it keeps its label.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.lab.cnn_batches import POSITIVE
from gateway.lab.readings import Asked, read_all, row_key
from gateway.lab.rows import CORPUS, LabError, Row, unit


class LlmTeacher(Struct, frozen=True, kw_only=True):
    """The LLM of `asked`. `weight` is its share in a target, `temperature` divides its log-odds.

    At most `rows` are read, which takes long: the own corpus first, since an epoch draws it most often, then the others
    in the order of their ids' hash.
    """

    asked: Asked
    readings: Path
    weight: float = 0.5
    temperature: float = 2.0
    rows: int = 20_000
    threads: int = 1

    def targets(self, rows: Sequence[Row]) -> Mapping[str, float]:
        """`weight` parts of the LLM's probability, the rest the label. Raises LabError."""
        if not (0 < self.weight <= 1 and self.temperature > 0):
            raise LabError(f"a teacher of weight {self.weight} at temperature {self.temperature} teaches nothing")
        chosen = sorted(rows, key=lambda r: (r.source != CORPUS, unit(r.id, "teacher")))[: self.rows]
        read = read_all(self.asked, chosen, self.readings, threads=self.threads)
        return {row.id: self._target(row, read[row_key(row)].margin(self.asked.positive)) for row in chosen}

    def facts(self) -> Mapping[str, Any]:
        """Which model was asked in which words, and how much it counted."""
        return {"asked": self.asked.fingerprint(), "weight": self.weight, "temperature": self.temperature}

    def _target(self, row: Row, margin: float) -> float:
        probability = 0.5 + 0.5 * math.tanh(margin / self.temperature / 2)
        return self.weight * probability + (1 - self.weight) * float(row.label == POSITIVE)
