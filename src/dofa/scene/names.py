"""What the names of files say: the band, and the product."""

import re

from dofa.addresses import shown
from dofa.raster.band_names import match
from dofa.sensors import Sensor

# What producers put before everything else in the names of their files.
PRODUCTS = {
    r"S2[A-D]_MSIL1C_": "sentinel-2-l1c",
    r"S2[A-D]_MSIL2A_": "sentinel-2-l2a",
    r"(?:L2A_)?T\d\d[A-Z]{3}_\d{8}T\d{6}_[A-Z0-9]{3}_[126]0m\.": "sentinel-2-l2a",
    r"L[CE]0([789])_L2S[PR]_": "landsat-{}-l2-sr",
    r"LT0(5)_L2S[PR]_": "landsat-{}-l2-sr",
    r"L[CO]0([89])_L1(TP|GT|GS)_": "landsat-{}-l1-toa",
    r"L[TE]0([57])_L1(TP|GT|GS)_": "landsat-{}-l1",
    r"HLS\.S30\.": "hls-s30",
    r"HLS\.L30\.": "hls-l30",
}
# Band files of Sentinel-2 without the pixel size that sen2cor adds: Level-1C, unless somebody renamed them.
LEVEL_1C = re.compile(r"T\d\d[A-Z]{3}_\d{8}T\d{6}_(B\d[\dA]|TCI)\.")


def basename(path: str) -> str:
    """The last part of a path or address, without its query."""
    return shown(path).removesuffix("?…").rstrip("/").rsplit("/", 1)[-1]


def tokens(path: str) -> list[str]:
    """Words of a file's name that may name its band, the last first: SR_B4 before B4 before what stands further on."""
    stem = re.sub(r"\.[A-Za-z0-9]+$", "", basename(path.split("?")[0]))
    parts = [p for p in re.split(r"[_.\-\s:\"]+", stem) if p and not re.fullmatch(r"\d+m?", p, re.IGNORECASE)]
    out = []
    for i in range(len(parts) - 1, -1, -1):
        out += [f"{parts[i - 1]}_{parts[i]}", parts[i]] if i else [parts[i]]
    return out


def band_by_name(path: str, sensor: Sensor) -> str | None:
    """The band that a file's name tells.

    Args:
        path: or address, of which only the last name counts.
        sensor: whose bands are looked through.
    """
    found = (match(text, sensor) for text in tokens(path))
    return next((band.name for band in found if band is not None), None)


def product_sensor(path: str) -> str | None:
    """The sensor of a file or its folder, by the form of the name its producer gives."""
    for part in reversed(path.split("/")[-2:]):
        for pattern, sensor in PRODUCTS.items():
            found = re.match(pattern, part)
            if found is not None:
                return sensor.format(*found.groups())
    return None
