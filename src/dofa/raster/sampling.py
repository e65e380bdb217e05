"""Windows of a file that are looked at on opening."""

from rasterio.windows import Window

SAMPLE_SIDE = 384  # files up to this side are looked at whole, larger ones in nine windows of a third of it
CORNER = 16  # pixels a side of what is looked at in each corner of a large file


def sample_windows(height: int, width: int) -> list[Window]:
    """All of a small file, nine windows spread over a large one.

    Args:
        height, width: of the file, in pixels.
    """
    if max(width, height) <= SAMPLE_SIDE:
        return [Window(0, 0, width, height)]
    rows, cols = min(height, SAMPLE_SIDE // 3), min(width, SAMPLE_SIDE // 3)
    tops = sorted({round(f * (height - rows)) for f in (0.05, 0.5, 0.95)})
    lefts = sorted({round(f * (width - cols)) for f in (0.05, 0.5, 0.95)})
    return [Window(left, top, cols, rows) for top in tops for left in lefts]


def corner_windows(height: int, width: int) -> list[Window]:
    """The corners of a large file, none of a small one, which is looked at whole.

    Args:
        height, width: of the file, in pixels.
    """
    if max(width, height) <= SAMPLE_SIDE:
        return []
    side = min(CORNER, width, height)
    return [Window(left, top, side, side) for top in (0, height - side) for left in (0, width - side)]
