"""A prefilter on disk: safetensors, and beside them a JSON that says how to read them. Nothing in it is executed."""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load, save

from gateway.adapters.prefilter.network import ARCHITECTURE, Network, Shape
from gateway.adapters.prefilter.reading import Alphabet, Reader

_MOST_ROWS = 1 << 18
"""A table larger than this is no prefilter but a mistake or an attack on memory."""


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logit → probability of the positive label, at the share of positives that the deployment sees.

    Platt: sigmoid(a·x + b), fitted where `fitted_share` of the weight was positive; then the odds are multiplied by the
    ratio of the prior odds (Saerens, Latinne and Decaestecker 2002).
    """

    method: Literal["platt"] = "platt"
    a: float
    b: float
    fitted_share: float
    deployed_share: float

    def score(self, logit: float) -> float:
        """In [0, 1]; NaN stays NaN."""
        x = self.a * logit + self.b + _log_odds(self.deployed_share) - _log_odds(self.fitted_share)
        return 0.0 if x < -700 else 1 / (1 + math.exp(-x))


class Sidecar(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands beside the weights. `training` is a record for people."""

    sha256: str
    shape: Shape
    alphabet: Alphabet
    calibration: Calibration
    training: dict[str, Any]


class Prefilter(NamedTuple):
    """A network that is ready to score, how to read for it, and what its logits mean."""

    network: Network
    reader: Reader
    calibration: Calibration


class UnusableWeights(Exception):
    """The files cannot be used as a prefilter. `file` is the one at fault, `hint` what helps."""

    def __init__(self, file: Path, message: str, hint: str) -> None:
        super().__init__(message)
        self.file, self.message, self.hint = file, message, hint


def sidecar_of(weights: Path) -> Path:
    """The JSON beside the weights."""
    return weights.with_suffix(".json")


def save_prefilter(
    weights: Path, network: Network, alphabet: Alphabet, calibration: Calibration, training: dict[str, Any]
) -> None:
    """Write both files; the tensors in half precision, which costs no accuracy that shows in a score."""
    body = save({name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()})
    sidecar = Sidecar(
        sha256=hashlib.sha256(body).hexdigest(),
        shape=network.shape,
        alphabet=alphabet,
        calibration=calibration,
        training=training,
    )
    weights.write_bytes(body)
    sidecar_of(weights).write_bytes(msgspec.json.format(msgspec.json.encode(sidecar), indent=2) + b"\n")


def load_prefilter(weights: Path) -> Prefilter:
    """Both files, checked against each other. Raises UnusableWeights."""
    sidecar = _sidecar(sidecar_of(weights))
    reader = _reader(sidecar.alphabet, sidecar_of(weights))
    _check_sizes(sidecar, reader, sidecar_of(weights))
    body = _read(weights)
    if hashlib.sha256(body).hexdigest() != sidecar.sha256:
        raise UnusableWeights(
            weights,
            f"the sha256 is not the one in {sidecar_of(weights).name}",
            "the file is damaged, or the two come from different trainings: copy both again",
        )
    network = Network(sidecar.shape)
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in load(body).items()})
    except (SafetensorError, RuntimeError, ValueError) as error:
        hint = "train it again with this version"
        raise UnusableWeights(weights, f"these are not the tensors of {ARCHITECTURE}: {error}", hint) from error
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise UnusableWeights(weights, "some weights are not finite numbers", "the training diverged: train it again")
    return Prefilter(network.eval(), reader, sidecar.calibration)


def _sidecar(path: Path) -> Sidecar:
    try:
        return msgspec.json.decode(_read(path), type=Sidecar)
    except msgspec.MsgspecError as error:
        raise UnusableWeights(path, f"this is no prefilter's description: {error}", _RETRAIN) from error


def _reader(alphabet: Alphabet, path: Path) -> Reader:
    try:
        return Reader(alphabet)
    except ValueError as error:
        raise UnusableWeights(path, str(error), _RETRAIN) from error


def _check_sizes(sidecar: Sidecar, reader: Reader, path: Path) -> None:
    shape, calibration = sidecar.shape, sidecar.calibration
    if shape.architecture != ARCHITECTURE:
        raise UnusableWeights(path, f"the architecture is `{shape.architecture}`, not `{ARCHITECTURE}`", _RETRAIN)
    if shape.table_rows != reader.table_rows or not 0 < shape.table_rows <= _MOST_ROWS:
        raise UnusableWeights(
            path, f"shape.table_rows is {shape.table_rows}, the alphabet needs {reader.table_rows}", _RETRAIN
        )
    if not all(0 < share < 1 for share in (calibration.fitted_share, calibration.deployed_share)):
        raise UnusableWeights(path, "a calibration share is not between 0 and 1", "run `gateway lab calibrate`")


_RETRAIN = "copy it together with its weights, or train again with `gateway lab train-cnn`"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableWeights(path, f"this file cannot be read: {error.strerror}", _RETRAIN) from error


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))
