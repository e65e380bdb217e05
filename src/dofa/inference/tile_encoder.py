"""An encoder as the engine runs it, specialised for the bands of a scene, and how the scene is cut for it."""

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dofa.errors import ConfigError
from dofa.inference import engine
from dofa.inference.inputs import Inputs
from dofa.inference.principal_components import Projection
from dofa.inference.tiles import Plan
from dofa.inference.workers import TileModel, in_bf16
from dofa.model.devices import choose_device
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.heads import Block as Level
from dofa.model.heads import level_features, level_name
from dofa.model.vit import block_indices
from dofa.options import Precision

What = Literal["patch", "pixel", "tile"]


class EncoderTiles(nn.Module):
    """An encoder as the engine runs it: images to maps of features.

    Args:
        vit: specialised for the bands it is fed.
        what: `patch`, `pixel` (maps upsampled to pixels, bilinear) or `tile` (one vector for an image).
        blocks: whose patch tokens, concatenated; `pooled` is the last block with the norm that the pooled vector has.
        tile: pixels a side, for `tile`.
    """

    def __init__(self, vit: StaticViT, what: What, blocks: Sequence[Level], tile: int) -> None:
        super().__init__()
        self.vit, self.what = vit, what
        depth = len(vit.blocks)
        self.blocks: list[Level] = [b if b == "pooled" else block_indices([b], depth)[0] for b in blocks]
        self.patch = tile if what == "tile" else vit.config.patch
        self.cell = {"patch": self.patch, "pixel": 1, "tile": tile}[what]
        self.offset = 0 if what == "tile" else vit.config.patch_offset
        self.channels = vit.config.width * len(self.blocks)
        self.projection: Projection | None = None

    def project(self, projection: Projection) -> None:
        """Give only the components of a projection from now on."""
        self.projection = projection
        self.channels = len(projection.axes)

    @property
    def digest(self) -> str | None:
        """Of the projection's numbers; None without one."""
        if self.projection is None:
            return None
        numbers = [t.cpu().numpy().tobytes() for t in (self.projection.mean, self.projection.axes)]
        return hashlib.sha256(b"".join(numbers)).hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised (B, C, h, w) to (B, K, h / cell, w / cell) float32."""
        maps = self.maps(images)
        if self.projection is not None:
            maps = self.projection(maps)
        if self.what == "pixel":
            maps = F.interpolate(maps, scale_factor=self.vit.config.patch, mode="bilinear", align_corners=False)
        return maps

    def maps(self, images: Tensor) -> Tensor:
        """(B, D, g, g) of all blocks asked for, before any projection; g is 1 for `tile`."""
        single = self.what != "tile"
        found = level_features(self.vit, self.vit.forward_intermediates, images, self.blocks, single)
        maps = torch.cat([found[level_name(block)].float() for block in self.blocks], dim=1)
        return maps if single else maps[:, :, None, None]


def tile_side(inputs: Inputs, model: DOFA, tile: int | None) -> int:
    """Pixels a side of a tile: as told, or as trained; no more than the scene's whole patches.

    Args:
        model: with its patch and image size.
        tile: side in pixels as told, None for the model's.

    Raises:
        ConfigError: not a multiple of the patch.
    """
    patch = model.config.patch
    side = model.config.image_size if tile is None else tile
    if side < patch or side % patch:
        raise ConfigError(f"tile {side}: a multiple of the patch of {patch} pixels is needed")
    return min(side, patch * -(-max(inputs.scene.height, inputs.scene.width) // patch))


def specialised(
    model: DOFA, inputs: Inputs, device: str | None, compile: bool, precision: Precision = "auto"
) -> StaticViT:
    """The encoder with the kernel of these bands, its matrices in the precision it will run in.

    Args:
        inputs: whose wavelengths it will see.
        device: as told, None for the best there is.
        compile: through torch.compile.
        precision: it will run in.
    """
    target = choose_device(device)
    low = in_bf16(precision, target)
    vit = model.specialize(inputs.wavelengths, precision=torch.bfloat16 if low else None).eval().to(target)
    if compile:
        from dofa.model.compiled import compiled

        compiled(vit)
    return vit


def plan_for_encoder(inputs: Inputs, tiles: TileModel, side: int, stride: int | None, overlap: int | None) -> Plan:
    """How a scene is cut for a model.

    Args:
        tiles: the model with its patch and cell.
        side: of a tile, in pixels.
        stride: pixels between shifted passes, None for one pass.
        overlap: pixels that tiles share, None for a third of a tile.

    Raises:
        ConfigError: a stride or an overlap that does not fit.
    """
    whole = tiles.patch == side  # one vector a tile
    step = tiles.cell if stride is None else stride
    third = tiles.patch * min(round(side / 3 / tiles.patch), side // tiles.patch - 1)  # docs/scene-speed.md: seams
    return Plan(
        height=inputs.scene.height,
        width=inputs.scene.width,
        tile=side,
        overlap=0 if whole else (third if overlap is None else overlap),
        patch=tiles.patch,
        cell=tiles.cell,
        stride=step,
        offset=tiles.offset,
        swath=engine.swath_of(inputs, side, tiles, step),
    )
