"""Crop the real pictures that the package carries, from ../shared/data into src/dofa/samples.

Only sources whose licence lets anyone redistribute them are used; LICENCES.md beside the pictures is written by the
same run, so that it names every file that is there. Run once, the result is committed:

    python tools/make_samples.py ../shared/data
"""

import argparse
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from dofa import sensors

OUT = Path(__file__).resolve().parents[1] / "src" / "dofa" / "samples"


@dataclass(frozen=True)
class Source:
    """Where pictures come from and what one may do with them."""

    title: str
    licence: str
    attribution: str
    url: str


NAIP = Source(
    "National Agriculture Imagery Program (NAIP), quarter quadrangle 4709963 SE, 2012, 2016 and 2020, at 5 m",
    "public domain (work of the United States government)",
    "USDA Farm Production and Conservation, Geospatial Enterprise Operations",
    "https://naip-usdaonline.hub.arcgis.com/",
)
USGS = Source(
    "High resolution orthoimagery, 0.2 m",
    "public domain (work of the United States government)",
    "U.S. Geological Survey",
    "https://www.usgs.gov/centers/eros/science/usgs-eros-archive-aerial-photography-high-resolution-orthoimagery-hro",
)
LANDSAT = Source(
    "Landsat 5 TM (Rondônia, 1988), Landsat 7 ETM+ (1999), Landsat 8 OLI (Madagascar, 2017)",
    "public domain (work of the United States government)",
    "Landsat images courtesy of the U.S. Geological Survey",
    "https://www.usgs.gov/landsat-missions",
)
SSL4EO = Source(
    "SSL4EO-S12, location 0000200",
    "Creative Commons Attribution 4.0 (CC-BY-4.0), https://creativecommons.org/licenses/by/4.0/",
    "Wang, Braham, Xiong, Liu, Albrecht, Zhu: SSL4EO-S12 (2023); contains modified Copernicus Sentinel data 2020",
    "https://github.com/zhu-xlab/SSL4EO-S12",
)
BIGEARTHNET = Source(
    "BigEarthNet v2.0 (reBEN), two patches of tile T33UUP",
    "Community Data License Agreement, Permissive, 1.0 (CDLA-Permissive-1.0), https://cdla.dev/permissive-1-0/",
    "Clasen, Hackel, Burgert, Sumbul, Demir, Markl: reBEN (2024); contains modified Copernicus Sentinel data 2017",
    "https://bigearth.net/",
)
HYSPECNET = Source(
    "HySpecNet-11k, one patch",
    "Creative Commons Zero 1.0 (CC0-1.0), https://creativecommons.org/publicdomain/zero/1.0/",
    "Fuchs, Demir: HySpecNet-11k (2023); from EnMAP data of the German Aerospace Center (DLR), 2022",
    "https://hyspecnet.rsim.berlin/",
)


@dataclass(frozen=True)
class Picture:
    """One crop about to be written; `scale` where the file's numbers differ from the catalogued product's."""

    sensor: str
    name: str
    source: Source
    image: NDArray[Any]
    changes: str
    crs: CRS | None = None
    transform: rasterio.Affine | None = None
    scale: float | None = None
    nodata: float | None = None


def main() -> None:
    """Write every picture and the list of licences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with naip/, landsat/, true_formats/ …")
    data = parser.parse_args().data
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    pictures = [*naip(data), *usgs(data), *landsat(data), *ssl4eo(data), *bigearthnet(data), *hyspecnet(data)]
    for folder in (p for p in OUT.iterdir() if p.is_dir()):
        shutil.rmtree(folder)
    size = sum(write(p) for p in pictures)
    (OUT / "LICENCES.md").write_text(licences(pictures), encoding="utf-8")
    print(f"{len(pictures)} pictures, {size / 1e6:.2f} MB")


def naip(data: Path) -> list[Picture]:
    """Two blocks half a scene apart, the same ones at every date."""
    out = []
    for path in sorted((data / "naip").glob("*.tif")):
        for side, (row, col) in {"west": (330, 60), "east": (60, 640)}.items():
            image, crs, transform = crop(path, row, col, 256)
            out.append(Picture("naip-rgbn", f"{side}_{path.stem[-8:-4]}", NAIP, image, "cropped", crs, transform))
    return out


def usgs(data: Path) -> list[Picture]:
    """Streets, houses, trees, an industrial yard."""
    names = {"1560": "houses", "2402": "yard", "3674": "park", "5261": "street"}
    return [
        Picture("rgb-aerial", name, USGS, crop(data / "usgs_rgb_0p2m" / f"{tile}.png", 128, 128, 256)[0], "cropped")
        for tile, name in names.items()
    ]


def landsat(data: Path) -> list[Picture]:
    """A delta, a lake among forests, a town."""
    folder = data / "landsat"
    eight = np.load(folder / "l8_madagascar_2017.npz")["x"]
    five = np.load(folder / "l5_tm_rondonia_1988.npz")["x"]
    path = folder / "LE70220491999322EDC01_stack.gtif"
    seven, crs, transform = crop(path, 20, 50, 192)
    pan = "cropped; the panchromatic band is on the 30 m grid"
    return [
        Picture("landsat-8-l1-toa", "delta", LANDSAT, eight[:, 330:490, 120:280], pan, nodata=0),
        Picture("landsat-8-l1-toa", "savanna", LANDSAT, eight[:, 30:190, 450:610], pan, nodata=0),
        Picture("landsat-5-l1", "rondonia", LANDSAT, five[:, 40:264, 40:264], "cropped"),
        Picture(
            "landsat-7-l2-sr",
            "edc",
            LANDSAT,
            seven[:6],
            "cropped; the six reflective bands",
            crs,
            transform,
            scale=1e-4,
            nodata=-9999,
        ),
    ]


def ssl4eo(data: Path) -> list[Picture]:
    """One place in India: Sentinel-2 in June, Sentinel-1 in June and September 2020."""
    root = data / "true_formats" / "SSL4EO-S12"
    folder = next((root / "s2a" / "0000200").glob("20200604*"))
    files = {f.stem: f for f in folder.glob("*.tif")}
    names = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B11 B12".split()  # noqa: SIM905
    image = to_10m([rasterio.open(files[n]).read(1) for n in names])
    crs, transform = place(files["B2"], 24, 24)
    repeated = "cropped; bands of 20 and 60 m repeated onto the 10 m grid"
    out = [Picture("sentinel-2-l2a", "ssl4eo_june", SSL4EO, image[:, 24:240, 24:240], repeated, crs, transform)]
    for scene in sorted((root / "s1" / "0000200").iterdir()):
        crs, transform = place(scene / "VV.tif", 24, 24)
        image = np.stack([rasterio.open(scene / f"{p}.tif").read(1) for p in ("VV", "VH")])[:, 24:240, 24:240]
        name = {"06": "ssl4eo_june", "09": "ssl4eo_september"}[scene.name[21:23]]
        out.append(Picture("sentinel-1-grd", name, SSL4EO, *rounded(image), crs, transform))
    return out


def bigearthnet(data: Path) -> list[Picture]:
    """One Sentinel-2 and one Sentinel-1 patch, of different places."""
    root = data / "true_formats" / "BigEarthNet"
    s2 = next((root / "BigEarthNet-S2").glob("*/*"))
    s1 = next((root / "BigEarthNet-S1").glob("*/*"))
    names = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12".split()  # noqa: SIM905
    image = to_10m([rasterio.open(s2 / f"{s2.name}_{n}.tif").read(1) for n in names])
    radar = np.stack([rasterio.open(s1 / f"{s1.name}_{p}.tif").read(1) for p in ("VV", "VH")])
    repeated = "bands of 20 and 60 m repeated onto the 10 m grid"
    return [
        Picture(
            "sentinel-2-l2a",
            "bigearthnet",
            BIGEARTHNET,
            image,
            repeated,
            *place(s2 / f"{s2.name}_B02.tif"),
            nodata=0,
        ),
        Picture("sentinel-1-grd", "bigearthnet", BIGEARTHNET, *rounded(radar), *place(s1 / f"{s1.name}_VV.tif")),
    ]


def hyspecnet(data: Path) -> list[Picture]:
    """The bright corner of a lake; the reflectances are small and noisy."""
    path = sorted((data / "enmap_hyspecnet11k").rglob("*SPECTRAL_IMAGE.TIF"))[1]
    image, crs, transform = crop(path, 8, 40, 40)
    return [Picture("enmap", "lake", HYSPECNET, image, "cropped", crs, transform, nodata=-32768)]


def crop(path: Path, row: int, col: int, size: int) -> tuple[NDArray[Any], CRS | None, rasterio.Affine | None]:
    """A square of all bands with its place, if the file has one."""
    with rasterio.open(path) as file:
        image = file.read(window=((row, row + size), (col, col + size)))
        if file.crs is None:
            return image, None, None
        return image, file.crs, file.transform * rasterio.Affine.translation(col, row)


def place(path: Path, row: int = 0, col: int = 0) -> tuple[CRS, rasterio.Affine]:
    """Coordinate system and transform of a file, moved to a crop's corner."""
    with rasterio.open(path) as file:
        return file.crs, file.transform * rasterio.Affine.translation(col, row)


def to_10m(bands: list[NDArray[Any]]) -> NDArray[Any]:
    """Bands of several sizes on the grid of the finest, each coarse pixel repeated."""
    side = max(b.shape[0] for b in bands)
    return np.stack([np.kron(b, np.ones((side // b.shape[0],) * 2, b.dtype)) for b in bands])


def rounded(db: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
    """Decibels to 1/64, which halves the file and lies far below the speckle; and the words that say so."""
    return (np.rint(db * 64) / 64).astype(np.float32), "cropped; dB rounded to 1/64"


def write(picture: Picture) -> int:
    """Write one GeoTIFF; returns its size in bytes."""
    sensor = sensors.get(picture.sensor)
    path = OUT / picture.sensor / f"{picture.name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.ascontiguousarray(picture.image)
    if len(image) != len(sensor.bands):
        raise SystemExit(f"{path}: {len(image)} bands, {sensor.name} has {len(sensor.bands)}")
    options: dict[str, Any] = {"crs": picture.crs, "transform": picture.transform} if picture.crs else {}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(image),
        height=image.shape[1],
        width=image.shape[2],
        dtype=image.dtype,
        nodata=picture.nodata,
        compress="deflate",
        zlevel=9,
        predictor=3 if image.dtype == np.float32 else 2,
        interleave="band",
        **options,
    ) as file:
        file.write(image)
        file.descriptions = sensor.band_names
        if picture.scale is not None:
            file.scales = (picture.scale,) * len(image)
        file.update_tags(
            sensor=sensor.name,
            source=picture.source.title,
            licence=picture.source.licence,
            attribution=picture.source.attribution,
            changes=picture.changes,
        )
    return path.stat().st_size


def licences(pictures: list[Picture]) -> str:
    """The text of LICENCES.md."""
    lines = [
        "# Real pictures in this package, and their licences",
        "",
        "Crops of published images, for the demo, the documentation and the tests. They are not under the licence of",
        "the code: each keeps the licence of its source. Written by `tools/make_samples.py`.",
        "",
    ]
    for source in dict.fromkeys(p.source for p in pictures):
        lines += [
            f"## {source.title}",
            "",
            f"- Licence: {source.licence}",
            f"- Attribution: {source.attribution}",
            f"- Source: <{source.url}>",
            "",
            "| file | size | changes |",
            "|---|---|---|",
        ]
        for p in pictures:
            if p.source is source:
                bands, height, width = p.image.shape
                lines.append(f"| {p.sensor}/{p.name}.tif | {bands} × {height} × {width} | {p.changes} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
