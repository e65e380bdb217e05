"""What the probes of images and of pixels share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from dofa.datasets.labelled import LabelledImages
from dofa.datasets.splits import EvaluationSplits
from dofa.evaluation.backbones import Backbone
from dofa.evaluation.bootstrap import CrossValidated
from dofa.evaluation.cross_validation import LinearModel, Optimizer
from dofa.evaluation.frozen_features import Precision
from dofa.evaluation.judged_images import Panels
from dofa.evaluation.probe_result import Classifier
from dofa.model.heads import Block
from dofa.pixels import Scaling

BAND_STATISTICS: Final = "band statistics"  # what tables call the features that need no model

Runs = dict[tuple[str, Classifier], list[CrossValidated]]  # by features and classifier; one a random encoder


@dataclass(frozen=True)
class ProbeSettings:
    """Images, splits, and how features are computed.

    Attributes:
        images: with all bands.
        inputs: the same with the bands that the model takes.
        levels: blocks whose features are probed, or `pooled`.
        candidates: for C of the logistic regression, or rates of LARS.
        size: side in pixels the images are resized to.
        announce: says what is computed next and over how many statistics; returns what counts the images done.
    """

    images: LabelledImages
    inputs: LabelledImages
    splits: EvaluationSplits
    levels: tuple[Block, ...]
    candidates: tuple[float, ...]
    optimizer: Optimizer
    seed: int
    size: int | None
    batch: int
    precision: Precision
    device: str | None
    cache: Path | None
    announce: Callable[[str, int], Callable[[int], None]]

    @property
    def linear(self) -> Classifier:
        """What tables call the linear layer."""
        return "LARS" if self.optimizer == "lars" else "logistic"


def level_name(level: Block) -> str:
    """What tables call the features of a level."""
    return "pooled" if level == "pooled" else f"block {level}"


class Probe(Protocol):
    """A probe of images, or of pixels.

    Attributes:
        protocol: its own settings, for the record.
    """

    protocol: dict[str, Any]

    def score(self, backbone: Backbone, prefix: str, title: str, scalings: list[Scaling]) -> Runs:
        """Cross-validated scores of a model's features at every level, named with a prefix; a scaling a fold."""

    def score_bands(self) -> Runs:
        """The same of band statistics, without a model."""

    def fit(self, backbone: Backbone, level: Block, scaling: Scaling) -> tuple[LinearModel, int]:
        """A layer on all training images, and the side in pixels of what the model was fed."""

    def fit_bands(self) -> LinearModel:
        """The same on band statistics."""

    def panels(self, runs: Runs) -> Panels | None:
        """A few judged images beside their labels; None of classes of images."""
