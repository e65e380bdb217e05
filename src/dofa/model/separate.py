"""One patch embedding a sensor before a shared Transformer: what generated kernels are compared with.

The kernels of all bands of all sensors stand in one table, a row a band, and an image takes its sensor's rows. That is
an ordinary patch embedding for each sensor, and every parameter has a gradient in every step (zero in the rows of
absent sensors), whatever the mixture: DDP and accumulation find nothing that some processes have and others lack.

Source: the baseline with one embedding a sensor of arXiv 2403.15356, table 2 (OFA-Net, arXiv 2401.07527).
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dofa.errors import ConfigError
from dofa.model.config import TrainedSensor
from dofa.model.patch_embed import embed_patches
from dofa.sensors import Sensor


class SeparatePatchEmbedding(nn.Module):
    """Patches of known sensors to tokens, each sensor through a kernel and a bias of its own.

    Args:
        patch: side of a patch in pixels.
        offset: as of `DynamicPatchEmbedding`.

    Raises:
        ConfigError: no sensor.
    """

    owners: Tensor  # the sensor of each row

    def __init__(self, width: int, patch: int, offset: int, sensors: Mapping[str, TrainedSensor]) -> None:
        super().__init__()
        if not sensors:
            raise ConfigError("embedding separate has one patch embedding a sensor: name the sensors it is for")
        self.width, self.patch, self.offset = width, patch, offset
        # By name and not by the order they were told in: a config.json that was sorted means the same.
        self.sensors = {name: sensors[name] for name in sorted(sensors)}
        spans = list(self.spans())
        self.kernels = nn.Parameter(torch.empty(spans[-1].stop, patch * patch * width))
        self.bias = nn.Parameter(torch.zeros(len(spans), width))
        owners = torch.tensor([number for number, span in enumerate(spans) for _ in span])
        self.register_buffer("owners", owners, persistent=False)
        for span in spans:  # Glorot's uniform distribution
            half = math.sqrt(6 / (len(span) * patch * patch + width))
            nn.init.uniform_(self.kernels.data[span.start : span.stop], -half, half)

    def no_weight_decay(self) -> set[str]:
        """The bias of all sensors is a matrix, and decays no more for that."""
        return {"bias"}

    def spans(self) -> Iterator[range]:
        """The rows of each sensor."""
        first = 0
        for sensor in self.sensors.values():
            yield range(first, first + len(sensor.bands))
            first += len(sensor.bands)

    def rows(self, sensor: Sensor) -> list[int]:
        """Where the bands of a sensor, or some of them in any order, stand in the table.

        The embedding is that of the sensor's name, or else of a sensor of the same platform that has all of its bands.

        Raises:
            ConfigError: no embedding has them.
        """
        spans = dict(zip(self.sensors, self.spans(), strict=True))
        for name in self.candidates(sensor):
            here = {band.lower(): row for band, row in zip(self.sensors[name].bands, spans[name], strict=True)}
            found = [next((here[n] for n in names if n in here), None) for names in _names(sensor)]
            if found and None not in found:
                return [row for row in found if row is not None]
        raise ConfigError(
            f"no patch embedding for {sensor.name} with {', '.join(sensor.band_names)}: this model has one for each of "
            + "; ".join(f"{name} ({', '.join(s.bands)})" for name, s in self.sensors.items())
        )

    def candidates(self, sensor: Sensor) -> list[str]:
        """Names of the embeddings a sensor may take: its own, else those of its platform."""
        if sensor.name in self.sensors:
            return [sensor.name]
        return [name for name, known in self.sensors.items() if known.platform and known.platform == sensor.platform]

    def kernel(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `DynamicPatchEmbedding.kernel`, for (C,) rows of one sensor: weight (C·p·p, D), bias (D,), the rows."""
        return self.kernels[rows].reshape(-1, self.width), self.bias[self.owners[rows[0]]], rows

    def forward(self, image: Tensor, rows: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `DynamicPatchEmbedding.forward`: (B, K or N, D) tokens, and the rows for the decoder.

        Args:
            image: (B, C, H, W), normalised.
            rows: (C,) where the bands stand in its table.
            keep: (B, K) patches to embed, None for all.
        """
        weight, bias, rows = self.kernel(rows)
        return embed_patches(image, self.patch, self.offset, weight, bias, keep), rows


class SeparatePatchPrediction(nn.Module):
    """Tokens back to the pixels of known sensors: one output layer each.

    Args:
        embedding: whose sensors and rows these are.
    """

    def __init__(self, width: int, embedding: SeparatePatchEmbedding) -> None:
        super().__init__()
        self.width = width
        bands, area = len(embedding.kernels), embedding.patch**2
        self.kernels = nn.Parameter(torch.empty(bands, area * width))
        self.bias = nn.Parameter(torch.zeros(bands, area))
        nn.init.normal_(self.kernels, std=0.02)  # it begins near the mean, as generated ones do: Glorot's is 0.8 off

    def no_weight_decay(self) -> set[str]:
        """See `SeparatePatchEmbedding.no_weight_decay`."""
        return {"bias"}

    def forward(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """(B, M, width) to (B, M, C·p·p), values in (C, p, p) order.

        Args:
            rows: (C,) where the bands stand in its table, of one sensor.
        """
        return F.linear(tokens, self.kernels[rows].reshape(-1, self.width), self.bias[rows].flatten())


def _names(sensor: Sensor) -> list[tuple[str, ...]]:
    return [tuple(name.lower() for name in (band.name, *band.aliases)) for band in sensor.bands]
