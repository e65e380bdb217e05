"""Decoders of segmentation: feature maps of a plain ViT in, logits of every pixel out.

Each takes the maps of a few blocks, all of one size (B, D, h, w), as `forward_intermediates` gives them, and `size`,
the pixels that they cover: h and w times the patch, which is the image where it consists of whole patches. `on_image`
cuts the logits to any other image. Batch norms take the statistics of the batch; several processes share them after
`torch.nn.SyncBatchNorm.convert_sync_batchnorm`.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dofa.errors import DataError

Size = tuple[int, int]
BINS = (1, 2, 3, 6)  # of the pyramid pooling, cells a side (Zhao et al. 2017)
SCALES = 4  # of the feature pyramid: four maps become ×4, ×2, ×1 and ×½
DROPOUT = 0.1  # of channels before the classifier


class LinearDecoder(nn.Module):
    """One linear layer at every place, on the maps laid over each other: a linear probe for segmentation.

    The features are standardised by a batch norm without parameters, as block outputs differ much in size.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.norm = nn.BatchNorm2d(sum(widths), affine=False)
        self.classifier = classifier(sum(widths), classes)

    def forward(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """Maps (B, D, h, w) to logits (B, K, H, W), bilinear between the places.

        Args:
            maps: (B, D, h, w) a level.
            size: (H, W) of the logits.

        Raises:
            DataError: other maps than it was built for, or a training batch with a single place.
        """
        images, rows, columns = check_maps(maps, self.widths)
        check_batch(self, images * rows * columns)
        return resize(self.classifier(self.norm(torch.cat(list(maps), 1))), size)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """The linear layer on raw features with the standardisation folded in: weight (K, D), bias (K,), float64."""
        mean, variance = cast(Tensor, self.norm.running_mean), cast(Tensor, self.norm.running_var)
        weight = self.classifier.weight.double().flatten(1) / (variance.double() + self.norm.eps).sqrt()
        return weight, cast(Tensor, self.classifier.bias).double() - weight @ mean.double()


class FeaturePyramid(nn.Module):
    """Four maps of one size as the levels of a pyramid: ×4, ×2, ×1 and ×½ as fine.

    Finer by transposed convolutions of stride 2, coarser by maximum pooling (Li et al. 2022, arXiv 2203.16527, in the
    form of Bao et al. 2021). The first map, of the shallowest block, becomes the finest.

    Args:
        width: of the maps, and of the levels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def twice() -> nn.Module:
            # No bias: it would pass through linear layers only and be taken away by the batch norm behind them.
            return nn.ConvTranspose2d(width, width, 2, 2, bias=False)

        self.finest = nn.Sequential(twice(), nn.BatchNorm2d(width), nn.GELU(), twice())
        self.finer = twice()
        # A last odd row is kept: at an even number of patches this is the published pooling.
        self.coarser = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four (B, D, h, w) to (B, D, 4h, 4w), (B, D, 2h, 2w), (B, D, h, w) and (B, D, ⌈h/2⌉, ⌈w/2⌉)."""
        first, second, third, last = maps
        return [self.finest(first), self.finer(second), third, self.coarser(last)]


class PyramidPooling(nn.Module):
    """A map with what lies around every place in four sizes (Zhao et al. 2017, arXiv 1612.01105, section 3.2).

    Args:
        channels: of each pooled map, and of the result.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(convolution(width, channels, 1) for _ in BINS)
        self.bottleneck = convolution(width + len(BINS) * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to (B, channels, h, w)."""
        pooled = [stage(F.adaptive_avg_pool2d(x, bins)) for bins, stage in zip(BINS, self.stages, strict=True)]
        return cast(Tensor, self.bottleneck(torch.cat([x, *(resize(p, x.shape[-2:]) for p in pooled)], 1)))


class UPerNet(nn.Module):
    """Unified perceptual parsing on the maps of a plain ViT: pyramid, pyramid pooling, FPN, fusion of all levels.

    Args:
        channels: of all that follows the pyramid; 512 is the published number.

    Source: Xiao et al. 2018 (arXiv 1807.10221), section 3.2.
    """

    def __init__(self, width: int, classes: int, channels: int = 512) -> None:
        super().__init__()
        self.widths = (width,) * SCALES
        self.pyramid = FeaturePyramid(width)
        self.pooling = PyramidPooling(width, channels)
        self.lateral = nn.ModuleList(convolution(width, channels, 1) for _ in range(SCALES - 1))
        self.smooth = nn.ModuleList(convolution(channels, channels, 3) for _ in range(SCALES - 1))
        self.fusion = convolution(SCALES * channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = classifier(channels, classes)

    def forward(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """Four maps (B, D, h, w), from the shallowest block on, to logits (B, K, H, W).

        Args:
            maps: one a level.
            size: (H, W) of the logits.

        Raises:
            DataError: other maps than it was built for, or a training batch of one image.
        """
        images, _, _ = check_maps(maps, self.widths)
        check_batch(self, images)  # all that is left where the pyramid pooling has a single cell
        *fine, coarsest = self.pyramid(maps)
        down = self.pooling(coarsest)
        levels = [down]
        for level, lateral, smooth in reversed(list(zip(fine, self.lateral, self.smooth, strict=True))):
            down = lateral(level) + resize(down, level.shape[-2:])
            levels.append(smooth(down))
        finest = levels[-1].shape[-2:]
        fused = self.fusion(torch.cat([resize(level, finest) for level in reversed(levels)], 1))
        return resize(self.classifier(self.dropout(fused)), size)


class FCNHead(nn.Module):
    """The auxiliary head: one convolution and a classifier on one of the maps.

    An FCN (Long et al. 2015) where Zhao et al. 2017 have theirs; its loss counts at 0.4 of the decoder's. The map it
    reads is a block's own output: with a frozen encoder it trains nothing but itself.

    Args:
        level: which of the maps it reads.
    """

    def __init__(self, width: int, classes: int, channels: int = 256, level: int = 2) -> None:
        super().__init__()
        self.width, self.level = width, level
        self.convolution = convolution(width, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = classifier(channels, classes)

    def forward(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """The same maps as the decoder beside it, (B, D, h, w), to logits (B, K, H, W).

        Args:
            maps: all levels; one of them is read.
            size: (H, W) of the logits.

        Raises:
            DataError: no such level, another width, or a training batch with a single place.
        """
        if self.level >= len(maps):
            raise DataError(f"the auxiliary head reads map {self.level} of {len(maps)}: numbers start from 0")
        images, rows, columns = check_maps(maps[self.level : self.level + 1], (self.width,))
        check_batch(self, images * rows * columns)
        return resize(self.classifier(self.dropout(self.convolution(maps[self.level]))), size)


class DPTDecoder(nn.Module):
    """A dense prediction Transformer's decoder: maps reassembled at four scales, fused from coarse to fine.

    Of the published forms this is the one for segmentation, with batch norm, reading patch tokens only. Scales are
    relative to the patch grid; transposed convolutions have kernels as large as their stride.

    Args:
        channels: of everything behind the maps; 256 is the published number.

    Source: Ranftl et al. 2021 (arXiv 2103.13413), section 3.
    """

    def __init__(self, width: int, classes: int, channels: int = 256) -> None:
        super().__init__()
        self.widths = (width,) * SCALES
        self.project = nn.ModuleList(nn.Conv2d(width, channels, 1) for _ in range(SCALES))
        self.resample = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels, channels, 4, 4),
                nn.ConvTranspose2d(channels, channels, 2, 2),
                nn.Identity(),
                nn.Conv2d(channels, channels, 3, 2, 1),
            ]
        )
        self.skip = nn.ModuleList(ResidualUnit(channels) for _ in range(SCALES - 1))
        self.refine = nn.ModuleList(ResidualUnit(channels) for _ in range(SCALES))
        self.blend = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(SCALES))
        self.last = convolution(channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = classifier(channels, classes)

    def forward(self, maps: Sequence[Tensor], size: Size) -> Tensor:
        """Four maps (B, D, h, w), from the shallowest block on, to logits (B, K, H, W).

        Args:
            maps: one a level.
            size: (H, W) of the logits.

        Raises:
            DataError: other maps than it was built for, or a training batch with a single place.
        """
        images, rows, columns = check_maps(maps, self.widths)
        check_batch(self, images * -(-rows // 2) * -(-columns // 2))
        levels = [resample(project(x)) for x, project, resample in zip(maps, self.project, self.resample, strict=True)]
        x = levels[-1]
        for i in reversed(range(SCALES)):
            if i < SCALES - 1:
                x = x + self.skip[i](levels[i])
            # To the next finer level, behind the finest twice as fine again: half the image at patches of 16.
            finer = levels[i - 1].shape[-2:] if i else (2 * x.shape[-2], 2 * x.shape[-1])
            x = self.blend[i](resize(self.refine[i](x), finer))
        return resize(self.classifier(self.dropout(self.last(x))), size)


class ResidualUnit(nn.Module):
    """Two convolutions beside a skip connection, each behind a ReLU (Lin et al. 2017, RefineNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        return x + cast(Tensor, self.branch(x))


def convolution(width: int, channels: int, kernel: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU, at the size of the input.

    Args:
        width: channels that come in.
        kernel: side in places, odd.
    """
    conv = nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False)  # the norm has a bias
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def classifier(width: int, classes: int) -> nn.Conv2d:
    """A linear layer at every place that starts out undecided.

    Args:
        width: channels that come in.
        classes: logits a place.
    """
    layer = nn.Conv2d(width, classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, by the areas of the pixels, not by their corners.

    Args:
        x: (B, C, h, w).
        size: (H, W) wanted.

    Returns:
        (B, C, H, W).
    """
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def on_image(logits: Tensor, size: Size, patch_offset: int) -> Tensor:
    """Logits of the pixels the patches cover as those of the image, which begins `patch_offset` pixels further in.

    Args:
        logits: (B, K, h·p, w·p), as a decoder gives them for whole patches.
        size: (H, W) of the image.
        patch_offset: of the encoder; with 1 the last row and column lie under no token and repeat their neighbours.

    Returns:
        (B, K, H, W).

    Raises:
        DataError: logits of a smaller area than the image.
    """
    height, width = size
    if logits.shape[-2] < height or logits.shape[-1] < width:
        raise DataError(
            f"logits of {logits.shape[-2]} × {logits.shape[-1]} pixels do not cover an image of {height} × {width}"
        )
    moved = logits[..., patch_offset:, patch_offset:][..., :height, :width]
    missing = (0, width - moved.shape[-1], 0, height - moved.shape[-2])
    return F.pad(moved, missing, mode="replicate") if any(missing) else moved


def check_maps(maps: Sequence[Tensor], widths: Sequence[int]) -> tuple[int, int, int]:
    """Refuse maps a decoder was not built for.

    Args:
        maps: (B, D, h, w) each.
        widths: D of each.

    Returns:
        Images, rows and columns of the maps.

    Raises:
        DataError: another number of maps, another width, or maps of several sizes.
    """
    shapes = [tuple(x.shape) for x in maps]
    if [shape[1] if len(shape) == 4 else None for shape in shapes] != list(widths):
        wanted = ", ".join(map(str, widths))
        raise DataError(f"maps of shapes {shapes}; the decoder takes {len(widths)}, (B, D, h, w) with D = {wanted}")
    (size, *others) = {(shape[0], *shape[2:]) for shape in shapes}
    if others:
        raise DataError(f"maps of shapes {shapes}: all must be of the same images and size")
    images, rows, columns = size
    return images, rows, columns


def check_batch(module: nn.Module, values: int) -> None:
    """Refuse to train on a batch that leaves a batch norm a single value of a channel, whose spread is nothing.

    Args:
        module: refused only while it trains.
        values: that a channel has in the batch.

    Raises:
        DataError: it does.
    """
    if module.training and values < 2:
        raise DataError("a training batch of one image is too small for batch norm: two or more, or leave it out")
