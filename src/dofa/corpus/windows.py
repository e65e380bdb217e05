"""How images are cut into tiles."""

from collections.abc import Iterator

from dofa.errors import ConfigError

Size = tuple[int, int]


def check_tile(tile: int | None, stride: int | None) -> None:
    """Refuse tiles and strides that cut nothing.

    Args:
        tile: side in pixels, None for whole images.
        stride: pixels from tile to tile, None for the tile's side.

    Raises:
        ConfigError: a tile without a pixel, a stride without a tile, or one that would leave gaps.
    """
    if (tile is not None and tile < 1) or (stride is not None and (tile is None or not 0 < stride <= tile)):
        raise ConfigError(f"tile {tile} and stride {stride}: a tile has 1 pixel at least, a stride 1 to tile pixels")


def windows(size: Size, tile: Size, stride: int) -> Iterator[Size]:
    """Top left corners of the tiles that cover an image; the last ones are moved inwards, so that none is lost.

    Args:
        size: (H, W) of the image.
        tile: (h, w).
        stride: pixels from tile to tile.
    """
    tops, lefts = (
        sorted({*range(0, full - side + 1, stride), full - side}) for full, side in zip(size, tile, strict=True)
    )
    return ((top, left) for top in tops for left in lefts)
