"""Probes of images: logistic regression and nearest neighbours on one vector an image."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dofa.errors import ConfigError
from dofa.evaluation.backbones import Backbone
from dofa.evaluation.bootstrap import score_images
from dofa.evaluation.cross_validation import LinearModel, check_features, choose_penalty, fit
from dofa.evaluation.frozen_features import BandStatistics, Floats, band_statistics, encode
from dofa.evaluation.judged_images import Panels
from dofa.evaluation.probe_settings import BAND_STATISTICS, ProbeSettings, Runs, level_name
from dofa.model.heads import Block
from dofa.pixels import Scaling


@dataclass
class ImageProbe:
    """See `Probe`.

    Attributes:
        neighbours: k of the nearest-neighbour probe.
    """

    settings: ProbeSettings
    neighbours: int

    def __post_init__(self) -> None:
        fewest = min(len(part.train) for part in self.settings.splits.parts)
        if not 1 <= self.neighbours <= fewest:
            raise ConfigError(f"--neighbours {self.neighbours}: between 1 and the {fewest} training images of a fold")
        self.protocol: dict[str, Any] = {"neighbours": self.neighbours}

    @cached_property
    def statistics(self) -> BandStatistics:
        """Of all bands of the images."""
        return band_statistics(self.settings.images, self.settings.cache)

    def score(self, backbone: Backbone, prefix: str, title: str, scalings: list[Scaling]) -> Runs:
        """See `Probe.score`."""
        runs: Runs = {}
        for level, features in self._encode(backbone, title, scalings).items():
            runs |= self._score(prefix + level_name(level), features)
        return runs

    def score_bands(self) -> Runs:
        """See `Probe.score_bands`."""
        return self._score(BAND_STATISTICS, [self.statistics.features] * len(self.settings.splits.parts))

    def fit(self, backbone: Backbone, level: Block, scaling: Scaling) -> tuple[LinearModel, int]:
        """See `Probe.fit`."""
        features = self._encode(backbone, "head", [scaling])[level][0]
        return self._fit(features), self.settings.size or self.settings.images.shape[1]

    def fit_bands(self) -> LinearModel:
        """See `Probe.fit_bands`."""
        return self._fit(self.statistics.features)

    def panels(self, runs: Runs) -> Panels | None:
        """None: classes of images are not drawn."""
        return None

    def _encode(self, backbone: Backbone, title: str, scalings: list[Scaling]) -> dict[Block, list[Floats]]:
        """(N, D) for each level and each scaling; equal scalings are encoded once."""
        s = self.settings
        advance = s.announce(title, len(set(scalings)))
        found = {
            scaling: encode(
                backbone, s.inputs, scaling, s.levels, size=s.size, batch=s.batch, precision=s.precision,
                device=s.device, cache=s.cache, progress=advance,
            )
            for scaling in dict.fromkeys(scalings)
        }  # fmt: skip
        return {level: [found[scaling][level] for scaling in scalings] for level in s.levels}

    def _score(self, name: str, of_folds: list[Floats]) -> Runs:
        """Of (N, D) features for each fold."""
        s = self.settings
        for features in {id(f): f for f in of_folds}.values():
            check_features(features, s.images.labels, s.images.sources, name)
        return {
            (name, classifier): [
                score_images(
                    classifier, of_folds, s.images.labels, s.splits.parts, s.splits.units,
                    classes=len(s.images.class_names), places=s.splits.places, candidates=s.candidates,
                    neighbours=self.neighbours, seed=s.seed,
                )
            ]
            for classifier in (s.linear, "k-NN")
        }  # fmt: skip

    def _fit(self, features: Floats) -> LinearModel:
        """A layer on the (N, D) features of all training images."""
        s, train = self.settings, self.settings.splits.learnt
        rows, labels = features[train], s.images.labels[train]
        places = None if s.splits.places is None else [s.splits.places[row] for row in train]
        penalty = choose_penalty(rows, labels, s.candidates, s.seed, places, s.optimizer)
        return fit(rows, labels, penalty, s.seed, s.optimizer)
