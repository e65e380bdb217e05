"""Writes RESISC45, SegMunich, OMBRIA, Sen1Floods11 and `.tortilla` files in their published layout, a few chips each.

Written from the tables of docs/datasets.md; shares nothing with the readers.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import rasterio
from PIL import Image
from rasterio.transform import from_origin

RESISC45 = (
    "airplane", "airport", "baseball_diamond", "basketball_court", "beach", "bridge", "chaparral", "church",
    "circular_farmland", "cloud", "commercial_area", "dense_residential", "desert", "forest", "freeway", "golf_course",
    "ground_track_field", "harbor", "industrial_area", "intersection", "island", "lake", "meadow",
    "medium_residential", "mobile_home_park", "mountain", "overpass", "palace", "parking_lot", "railway",
    "railway_station", "rectangular_farmland", "river", "roundabout", "runway", "sea_ice", "ship", "snowberg",
    "sparse_residential", "stadium", "storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland",
)  # fmt: skip
SEGMUNICH_RAW = (0, 21, 22, 23, 31, 5, 32, 33, 41, 13, 14, 11, 12)  # the label in the files of classes 0 to 12


def write_resisc45(root: Path, lists: str = "") -> Path:
    """`NWPU-RESISC45` with three pictures a class; `lists` is resisc45 (beside it), train-val (in it), or nothing."""
    folder = root / "NWPU-RESISC45"
    split_of = {1: "train", 2: "val", 3: "test"}
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(RESISC45):
        (folder / name).mkdir(parents=True)
        for number in split_of:
            picture = Image.new("RGB", (256, 256), (5 * label, 100, 250 - 5 * label))
            picture.save(folder / name / f"{name}_{number:03d}.jpg", quality=95)
            names[split_of[number]].append(f"{name}_{number:03d}.jpg")
    if lists == "resisc45":
        for split, files in names.items():
            (root / f"resisc45-{split}.txt").write_text("\n".join(files) + "\n")
    if lists == "train-val":
        lines = {"train": names["train"] + names["val"], "val": names["test"]}
        for split, files in lines.items():
            said = [f"{file.rpartition('_')[0]}/{file} {RESISC45.index(file.rpartition('_')[0])}" for file in files]
            (folder / f"{split}.txt").write_text("\n".join(said) + "\n")
    return folder


def write_tif(file: Path, array: Any, **profile: Any) -> None:
    """(C, H, W) as a GeoTIFF, pixel by pixel as tifffile's (H, W, C) lies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = array.shape
    said = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": array.dtype,
            "interleave": "pixel", **profile}  # fmt: skip
    with rasterio.open(file, "w", **said) as dataset:
        dataset.write(array)


def write_segmunich(root: Path, second: str = "test") -> Path:
    """`dataset` with two chips to train on and one in the second split; band i holds 100·(i + 1)."""
    folder = root / "dataset"
    for split, stems in (("train", ("10_1", "10_2")), (second, ("11_1",))):
        for stem in stems:
            bands = np.broadcast_to(100 * np.arange(1, 11, dtype=np.uint16)[:, None, None], (10, 128, 128))
            write_tif(folder / split / "img" / f"{stem}.tif", bands)
            row = np.array([*SEGMUNICH_RAW, 255], np.uint8)[np.arange(128) % 14]
            write_tif(folder / split / "label" / f"{stem}.tif", np.broadcast_to(row, (1, 128, 128)))
        (folder / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder


def write_ombria(root: Path) -> Path:
    """Two train and one test flood, both sensors, before, after and mask."""
    for sensor, mode in (("S1", "L"), ("S2", "RGB")):
        for split, number in (("train", 1), ("train", 2), ("test", 3)):
            for time, value in (("BEFORE", 40), ("AFTER", 80), ("MASK", 0)):
                folder = root / f"Ombria{sensor}" / split / time
                folder.mkdir(parents=True, exist_ok=True)
                colour = value + number
                picture = Image.new(mode, (256, 256), colour if mode == "L" else (colour, colour + 1, colour + 2))
                if time == "MASK":
                    picture = Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 128)[None].repeat(256, 0))
                picture.save(folder / f"{sensor}_{time.lower()}_{number:04d}.png")
    return root


def write_sen1floods11(root: Path, lists: bool = True) -> Path:
    """`v1.1` with one chip in each official list and one in none."""
    base = root / "v1.1"
    hand = base / "data" / "flood_events" / "HandLabeled"
    chips = {"train": "Ghana_1", "valid": "India_2", "test": "USA_3", "bolivia": "Bolivia_4", "": "Spain_5"}
    where = {"crs": "EPSG:4326", "transform": from_origin(10, 50, 9e-5, 9e-5), "compress": "deflate"}
    for stem in chips.values():
        s1 = np.stack([np.full((512, 512), -8.0), np.full((512, 512), -15.0)]).astype(np.float32)
        s1[:, 0, 0] = np.nan
        write_tif(hand / "S1Hand" / f"{stem}_S1Hand.tif", s1, nodata=np.nan, interleave="band", **where)
        s2 = np.broadcast_to(np.arange(100, 113, dtype=np.int16)[:, None, None], (13, 512, 512)).copy()
        s2[:, 0, 0] = 0
        write_tif(hand / "S2Hand" / f"{stem}_S2Hand.tif", s2, nodata=0, interleave="band", **where)
        label = np.broadcast_to((np.arange(512) % 3 - 1).astype(np.int16), (1, 512, 512))
        write_tif(hand / "LabelHand" / f"{stem}_LabelHand.tif", label, **where)
    if lists:
        folder = base / "splits" / "flood_handlabeled"
        folder.mkdir(parents=True)
        for name, stem in chips.items():
            if name:
                line = f"{stem}_S1Hand.tif,{stem}_LabelHand.tif\n"
                (folder / f"flood_{name}_data.csv").write_text(line)
    return base


def tortilla(rows: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> bytes:
    """A tortilla of these blobs; `rows` are the table's, without offsets and lengths."""
    table, offset = [], 200
    for row, blob in zip(rows, blobs, strict=True):
        table.append({**row, "tortilla:offset": offset, "tortilla:length": len(blob)})
        offset += len(blob)
    footer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), footer, compression="zstd")
    head = b"#y" + struct.pack("<QQQ", offset, len(footer.getvalue()), 1)
    return head.ljust(200, b"\0") + b"".join(blobs) + footer.getvalue()
