"""Small corpora in their true layouts: the names, types, sizes and labels of the published files, with drawn pixels.

Each writer returns what it wrote, by the facts of the corpus and not by way of a reader. As a script:
`python tests/corpus/layouts.py satlas-s2 FOLDER`.

Facts: allenai/satlas, SatlasPretrain.md; x-ytong/DPA, issue 8; reference/dofa.md section 2.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

SIDE = 512
S2_BANDS = ("tci", "b05", "b06", "b07", "b08", "b11", "b12")
S2_SCENES = (
    "S2A_MSIL1C_20160808T181452_N0204_R041_T12SVC_20160808T181447",
    "S2B_MSIL1C_20221230T180749_N0509_R041_T13UCR_20221230T195817",
    "S2A_MSIL1C_20170528T050611_N0205_R076_T44NMM_20170528T050606",
)
S2_TILES = ((1867, 3287), (1867, 3288), (5936, 3953))
S1_MONTHS = ("2022-01", "2022-03")
S1_TILES = ((1848, 3569), (1851, 3570), (1869, 3575), (1870, 3577))
NAIP_SCENES = ("m_2508008_nw_17_1_20151013", "m_3808245_se_17_1_20110801")
NAIP_TILES = ((36848, 49952), (36849, 49952), (36863, 49967), (36864, 49968))
GAOFEN_SCENES = ("GF2_PMS1__L1A0000564539-MSS1", "GF2_PMS2__L1A0001015594-MSS2", "GF2_PMS1__L1A0001064454-MSS1")

Key = tuple[str, int, int]


def picture(seed: Iterable[int], bands: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(bands, height, width) of 1 to 255: coarse fields, so that files stay small, with a pattern in each pixel."""
    rng = np.random.default_rng(tuple(seed))
    coarse = rng.integers(1, 240, (bands, height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    ramp = (np.arange(height)[:, None] * 3 + np.arange(width)) % 16
    return coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width] + ramp.astype(np.uint8)


def save_png(path: Path, image: np.ndarray) -> None:
    """(bands, H, W) as a PNG of one or three bands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path, compress_level=1)


def satlas_s2(root: Path, scenes=S2_SCENES, tiles=S2_TILES) -> dict[Key, np.ndarray]:
    """<scene>/<band>/<col>_<row>.png; returns (9, 512, 512): red, green, blue, then the other bands."""
    out = {}
    for s, scene in enumerate(scenes):
        for col, row in tiles:
            image = picture((2, s, col, row), 9)
            out[scene, col, row] = image
            save_png(root / scene / "tci" / f"{col}_{row}.png", image[:3])
            for n, band in enumerate(S2_BANDS[1:], 3):
                save_png(root / scene / band / f"{col}_{row}.png", image[n : n + 1])
    return out


def satlas_s1(root: Path, months=S1_MONTHS, tiles=S1_TILES) -> dict[Key, np.ndarray]:
    """<month>/<vv|vh>/<col>_<row>.png, or <vv|vh>/… for the month ""; returns (2, 512, 512), VV first."""
    out = {}
    for m, month in enumerate(months):
        for col, row in tiles:
            image = picture((1, m, col, row), 2)
            out[month, col, row] = image
            for n, band in enumerate(("vv", "vh")):
                save_png(root / month / band / f"{col}_{row}.png", image[n : n + 1])
    return out


def satlas_naip(root: Path, scenes=NAIP_SCENES, tiles=NAIP_TILES, folder="tci") -> dict[Key, np.ndarray]:
    """<scene>/tci/<col>_<row>.png with infrared beside it; with folder "" the tiles lie in the scene's folder."""
    out = {}
    for s, scene in enumerate(scenes):
        for col, row in tiles:
            image = picture((3, s, col, row), 4)
            out[scene, col, row] = image[:3]
            save_png(root / scene / folder / f"{col}_{row}.png", image[:3])
            if folder:
                save_png(root / scene / "ir" / f"{col}_{row}.png", image[3:])
    return out


def five_billion_pixels(
    root: Path, scenes=GAOFEN_SCENES, size=(700, 900), centres: dict[str, tuple[float, float]] | None = None
) -> dict[str, np.ndarray]:
    """Image__8bit_NirRGB/<scene>.tif marked CMYK, 16-bit copies, annotations and .rpb files with (lat, lon).

    Returns:
        (4, H, W) of each scene in the file's order, NIR, R, G, B, with a border of zeros above and to the left.
    """
    out = {}
    for folder in ("Image__8bit_NirRGB", "Image_16bit_BGRNir", "Annotation__index", "Annotation__color"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for s, scene in enumerate(scenes):
        image = picture((4, s), 4, *size)
        image[:, :40] = 0
        image[:, :, :30] = 0
        out[scene] = image
        inks = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)), "CMYK")
        inks.save(root / "Image__8bit_NirRGB" / f"{scene}.tif")
        write_tif(root / "Image_16bit_BGRNir" / f"{scene}.tiff", image[::-1, :64, :64].astype(np.uint16) * 4)
        save_png(root / "Annotation__index" / f"{scene}_24label.png", image[:1])
        Image.fromarray(image[:3].transpose(1, 2, 0)).save(root / "Annotation__color" / f"{scene}_24label.tif")
        if centres is not None:
            latitude, longitude = centres[scene]
            write_rpb(root / "Coordinate_files" / f"{scene}.rpb", latitude, longitude)
    return out


def write_tif(path: Path, image: np.ndarray, **options) -> None:
    """(bands, H, W) as a TIFF without a place."""
    bands, height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=image.dtype, **options
    ) as file:
        file.write(image)


def write_rpb(path: Path, latitude: float, longitude: float) -> None:
    """Rational polynomials as the satellite's operators write them, cut short after the offsets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        'satId = "GF2";\nbandId = "MSS1";\nSpecId = "RPC00B";\nBEGIN_GROUP = IMAGE\n\terrBias =   1.0;\n'
        "\terrRand =   0.0;\n\tlineOffset = 3399.5;\n\tsampOffset = 3599.5;\n"
        f"\tlatOffset =   {latitude:.12f};\n\tlongOffset = {longitude:+.8e};\n"
        "\theightOffset = 52.0;\nEND_GROUP = IMAGE\n"
    )


WRITERS = {
    "satlas-s1": satlas_s1,
    "satlas-s2": satlas_s2,
    "satlas-naip": satlas_naip,
    "five-billion-pixels": five_billion_pixels,
}

if __name__ == "__main__":
    WRITERS[sys.argv[1]](Path(sys.argv[2]))
