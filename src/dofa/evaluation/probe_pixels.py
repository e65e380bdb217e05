"""Probes of pixels: a linear layer on a sample of labelled pixels, tested on all pixels of other images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dofa.evaluation.backbones import Backbone
from dofa.evaluation.cross_validation import LinearModel
from dofa.evaluation.judged_images import Panels, choose_images, make_panels
from dofa.evaluation.pixel_features import BandPixels, EncoderPixels
from dofa.evaluation.pixel_probe import Ground, PixelTask, draw_sample, gather, label_map
from dofa.evaluation.probe_settings import BAND_STATISTICS, ProbeSettings, Runs, level_name
from dofa.model.heads import Block
from dofa.pixels import Scaling


@dataclass
class PixelProbe:
    """See `Probe`.

    Attributes:
        stride: pixels between the shifted passes that are averaged.
        pixels: how many to train on in a fold, classes alike.
        across: blocks in a row where one image was cut into blocks, else 0.
        gap: pixels between blocks of one image that are trained and tested on.
    """

    settings: ProbeSettings
    stride: int
    pixels: int
    across: int
    gap: int

    def __post_init__(self) -> None:
        images, splits, s = self.settings.images, self.settings.splits, self.settings
        self.sample = draw_sample(images, splits.groups, self.pixels, s.seed)
        ground = Ground(self.across, images.shape[1:], self.gap if self.across else 0)
        tested = sorted({int(row) for part in splits.parts for row in part.test})
        self.shown = frozenset(tested if self.across else choose_images(images, tested))
        self.task = PixelTask(
            images, splits.parts, splits.units, self.sample, ground, self.pixels, s.candidates, s.optimizer, s.seed,
            self.shown,
        )  # fmt: skip
        shape = list(images.shape[1:])
        self.protocol: dict[str, Any] = {
            "stride": self.stride, "pixels": self.pixels, "gap": ground.gap, "shape": shape,
        }  # fmt: skip

    def score(self, backbone: Backbone, prefix: str, title: str, scalings: list[Scaling]) -> Runs:
        """See `Probe.score`."""
        found = self.task.judge(self._maps(backbone, title, scalings), backbone.width, title)
        names = [prefix + level_name(level) for level in self.settings.levels]
        return {(name, self.settings.linear): [run] for name, run in zip(names, found, strict=True)}

    def score_bands(self) -> Runs:
        """See `Probe.score_bands`."""
        images = self.settings.images
        of_folds = [BandPixels(images)] * len(self.settings.splits.parts)
        found = self.task.judge(of_folds, 3 * len(images.sensor.bands), BAND_STATISTICS)
        return {(BAND_STATISTICS, self.settings.linear): found}

    def fit(self, backbone: Backbone, level: Block, scaling: Scaling) -> tuple[LinearModel, int]:
        """See `Probe.fit`."""
        (maps,) = self._maps(backbone, "head", [scaling])
        first = self.settings.levels.index(level) * backbone.width
        features = gather(maps, self.sample, self.settings.images.shape[1:])[:, first : first + backbone.width]
        return self.task.learn(features, self.settings.splits.learnt, np.zeros(0, np.int64)), maps.plan.tile

    def fit_bands(self) -> LinearModel:
        """See `Probe.fit_bands`."""
        images = self.settings.images
        features = gather(BandPixels(images), self.sample, images.shape[1:])
        return self.task.learn(features, self.settings.splits.learnt, np.zeros(0, np.int64))

    def panels(self, runs: Runs) -> Panels | None:
        """The images kept to be looked at, with every contender's classes."""
        images = self.settings.images
        predicted = {name: of_name[0].answers for (name, _), of_name in runs.items()}
        return make_panels(images, {row: label_map(images, row) for row in sorted(self.shown)}, predicted, self.across)

    def _maps(self, backbone: Backbone, title: str, scalings: Sequence[Scaling]) -> list[EncoderPixels]:
        """Feature maps for each scaling, computed when they are asked for."""
        s = self.settings
        advance, blocks = s.announce(title, len(set(scalings))), [int(level) for level in s.levels]
        found = {
            scaling: EncoderPixels(
                backbone, s.inputs, scaling, blocks, stride=self.stride, size=s.size, batch=s.batch,
                precision=s.precision, device=s.device, progress=advance,
            )
            for scaling in dict.fromkeys(scalings)
        }  # fmt: skip
        return [found[scaling] for scaling in scalings]
