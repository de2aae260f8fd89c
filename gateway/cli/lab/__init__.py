"""gateway lab."""

from gateway.cli.lab import calibrate, data, evaluate, train
from gateway.cli.lab.group import lab

__all__ = ["calibrate", "data", "evaluate", "lab", "train"]
