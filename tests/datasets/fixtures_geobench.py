"""Writes the twelve sets of GEO-Bench v1 in their published layout, with a few made-up samples each.

What a set looks like is written down here from the tables of docs/datasets.md, and shares nothing with the reader.
`python tests/datasets/fixtures_geobench.py OUT` makes them all.
"""

import json
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from affine import Affine
from rasterio.crs import CRS

S2_13 = (
    "01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR", "08A - Vegetation Red Edge",
    "09 - Water vapour", "10 - SWIR - Cirrus", "11 - SWIR", "12 - SWIR",
)  # fmt: skip
S2_12 = tuple(key for key in S2_13 if not key.startswith("10"))
S2_10 = tuple(key for key in S2_12 if not key.startswith(("01", "09")))
S1_8 = (
    "01 - VH.Real", "02 - VH.Imaginary", "03 - VV.Real", "04 - VV.Imaginary", "05 - VH.LEE Filtered",
    "06 - VV.LEE Filtered", "07 - VH.LEE Filtered.Real", "08 - VV.LEE Filtered.Imaginary",
)  # fmt: skip
RGB = ("Red", "Green", "Blue")
LANDSAT = ("04 - Red", "03 - Green", "02 - Blue", "05 - NIR", "06 - SWIR1", "07 - SWIR2")
SHARES = ("0.01", "0.02", "0.05", "0.10", "0.20", "0.50", "1.00")


@dataclass(frozen=True)
class Layout:
    """A set as the tables describe it: `kind` is class, flags or mask; `count` how many labels there are."""

    bands: tuple[str, ...]
    dtype: str
    size: int
    kind: str
    count: int
    dated: str = ""  # what follows the band's name
    mask: str = "label"
    mask_dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0
    odd: dict[str, tuple[tuple[int, ...], str]] | None = None  # shape and dtype of keys that are not as the others
    stem: str = "sample_{}"


LAYOUTS = {
    "m-bigearthnet": Layout(S2_12, "float32", 120, "flags", 43, high=20545),
    "m-forestnet": Layout(LANDSAT, "uint8", 332, "class", 12, "_2016-07-01", stem="-0.53_101.2{},5_2016_7_1"),
    "m-brick-kiln": Layout(S2_13, "float32", 64, "class", 2, high=1e4, stem="examples_3_{}"),
    "m-pv4ger": Layout(RGB, "uint8", 320, "class", 2, stem="49.1{},8.4"),
    "m-so2sat": Layout(S1_8 + S2_10, "float32", 32, "class", 17, high=2.8),
    "m-eurosat": Layout(S2_13, "int16", 64, "class", 10, high=28000, stem="id_{}"),
    "m-pv4ger-seg": Layout(RGB, "uint8", 320, "mask", 2, stem="49.1{},8.4"),
    "m-nz-cattle": Layout(RGB, "uint8", 500, "mask", 2, "_2016-01-01", "label_2016-01-01", stem="-43.2{},171.9"),
    "m-NeonTree": Layout(
        (*RGB, "Canopy Height Model", "Neon"), "uint8", 400, "mask", 2,
        odd={"Canopy Height Model": ((40, 40, 1), "float32"), "Neon": ((40, 40, 369), "int16")},
    ),
    "m-cashew-plant": Layout((*S2_12, "Cloud Probability"), "float32", 256, "mask", 7, "_2019-11-20", high=1e4),
    "m-SA-crop-type": Layout((*S2_12, "Cloud Probability"), "int16", 256, "mask", 10, mask_dtype="int16", high=255),
    "m-chesapeake": Layout((*RGB, "NearInfrared"), "float32", 256, "mask", 7, high=1.0),
}  # fmt: skip
SEGMENTED = {name for name, layout in LAYOUTS.items() if layout.kind == "mask"}


def plane_value(layout: Layout, band: str, sample: int) -> float:
    """What a sample's band holds everywhere but in its first pixel: whoever takes another band is found out."""
    step = (layout.high - layout.low) / (2 * len(layout.bands) + 8)
    value = layout.low + step * (1 + 2 * layout.bands.index(band)) + step * (sample % 4) / 8
    return float(np.array(value).astype(layout.dtype))


def mask_values(layout: Layout, sample: int) -> np.ndarray[Any, Any]:
    """(H, W): all labels in turn, by column."""
    row = (np.arange(layout.size) + sample) % layout.count
    return np.broadcast_to(row, (layout.size, layout.size)).astype(layout.mask_dtype)


@contextmanager
def _foreign_classes() -> Iterator[dict[str, Any]]:
    """Stand-ins for GEO-Bench's classes, found by pickle under the published names."""
    names = {
        "geobench.dataset": ("Sentinel2", "Sentinel1", "Landsat8", "SpectralBand", "ElevationBand",
                             "HyperSpectralBands", "CloudProbability", "SegmentationClasses"),
        "geobench.label": ("Classification", "MultiLabelClassification"),
        "geobench.task": ("TaskSpecifications",),
    }  # fmt: skip
    modules = {"geobench": types.ModuleType("geobench"), **{module: types.ModuleType(module) for module in names}}
    made = {}
    for module, classes in names.items():
        for name in classes:
            made[name] = type(name, (), {"__module__": module})
            setattr(modules[module], name, made[name])
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for module in modules:
            del sys.modules[module]


def _filled(made: Any, **state: Any) -> Any:
    thing = made()
    thing.__dict__.update(state)
    return thing


def _band_class(name: str, band: str) -> str:
    if band in ("Canopy Height Model", "Neon"):
        return "ElevationBand" if band.startswith("Canopy") else "HyperSpectralBands"
    if band == "Cloud Probability":
        return "CloudProbability"
    if band in S1_8:
        return "Sentinel1"
    return "Landsat8" if name == "m-forestnet" else "Sentinel2" if band in S2_13 else "SpectralBand"


def sample_label(layout: Layout, sample: int) -> Any:
    """The class of a sample, its flags, or what a mask's attribute carries."""
    if layout.kind == "flags":
        flags = np.zeros(layout.count, np.int64)
        flags[[sample % layout.count, (7 * sample + 3) % layout.count]] = 1
        return flags
    return sample % layout.count


def write_sample(folder: Path, name: str, sample: int) -> str:
    """One HDF5 of a set; its stem."""
    layout = LAYOUTS[name]
    stem = layout.stem.format(sample)
    keys = [band + layout.dated for band in layout.bands]
    with _foreign_classes() as classes, h5py.File(folder / f"{stem}.hdf5", "w") as file:
        said: dict[str, Any] = {} if layout.kind == "mask" else {"label": sample_label(layout, sample)}
        for band, key in zip(layout.bands, keys, strict=True):
            shape, dtype = (layout.odd or {}).get(band, ((layout.size, layout.size), layout.dtype))
            plane = np.full(shape, plane_value(layout, band, sample), dtype)
            plane[0, 0] = 0
            file.create_dataset(key, data=plane)
            info = _filled(classes[_band_class(name, band)], name=band, alt_names=(), spatial_resolution=10,
                           wavelength=0.5)  # fmt: skip
            said[key] = {
                "date": date(2016, 7, 1) if layout.dated else None, "date_id": None, "spatial_resolution": 10,
                "band_info": info, "meta_info": None, "transform": Affine(10.0, 0.0, 6e5, 0.0, -10.0, 5e6),
                "crs": CRS.from_epsg(32635),
            }  # fmt: skip
        if layout.kind == "mask":
            file.create_dataset(layout.mask, data=mask_values(layout, sample))
            names = _filled(classes["SegmentationClasses"], name="label", class_names=[str(i) for i in range(9)])
            said[layout.mask] = {"band_info": names}
            keys = [*keys, layout.mask]
        said["bands_order"] = keys
        file.attrs["pickle"] = str(pickle.dumps(said, protocol=4))
    return stem


def write_geobench(root: Path, name: str, samples: int = 4) -> Path:
    """A set's folder under `root`; samples are dealt out to train, train, valid, test in turn."""
    layout = LAYOUTS[name]
    folder = root / ("segmentation_v1.0" if layout.kind == "mask" else "classification_v1.0") / name
    folder.mkdir(parents=True)
    stems = [write_sample(folder, name, sample) for sample in range(samples)]
    splits = {split: [s for i, s in enumerate(stems) if i % 4 in turns]
              for split, turns in (("train", (0, 1)), ("valid", (2,)), ("test", (3,)))}  # fmt: skip
    (folder / "default_partition.json").write_text(json.dumps(splits))
    for share in SHARES:
        part = {**splits, "train": splits["train"][: max(1, round(float(share) * len(splits["train"])))]}
        (folder / f"{share}x_train_partition.json").write_text(json.dumps(part))
    stats = {}
    for band in (*layout.bands, "label"):
        value = 1.0 if band == "label" else plane_value(layout, band, 0)
        ranks = dict.fromkeys(("0_1", "1", "5", "95", "99", "99_9"), value)
        stats[band] = {"min": 0.0, "max": value, "mean": value, "std": value / 4, "median": value,
                       **{f"percentile_{rank}": v for rank, v in ranks.items()}}  # fmt: skip
    (folder / "band_stats.json").write_text(json.dumps(stats))
    flags = layout.kind == "flags"
    with _foreign_classes() as classes:
        label_names = {"class_name" if flags else "_class_names": [f"label {i}" for i in range(layout.count)]}
        kind = "MultiLabelClassification" if flags else "Classification"
        kind = "SegmentationClasses" if layout.kind == "mask" else kind
        specifications = _filled(
            classes["TaskSpecifications"], dataset_name=name, benchmark_name="classification_v0.8.5",
            patch_size=(layout.size, layout.size), n_time_steps=1,
            bands_info=[_filled(classes[_band_class(name, band)], name=band, alt_names=()) for band in layout.bands],
            label_type=_filled(classes[kind], n_classes=layout.count, **label_names), eval_metrics=None,
            spatial_resolution=np.int64(10),
        )  # fmt: skip
        (folder / "task_specs.pkl").write_bytes(pickle.dumps(specifications, protocol=4))
    if layout.kind == "class":
        by_label: dict[str, list[str]] = {}
        for sample, stem in enumerate(stems):
            by_label.setdefault(str(sample_label(layout, sample)), []).append(stem)
        (folder / "label_map.json").write_text(json.dumps(by_label))
    if flags:
        vectors = {stem: sample_label(layout, sample).tolist() for sample, stem in enumerate(stems)}
        (folder / "label_stats.json").write_text(json.dumps(vectors))
    return folder


if __name__ == "__main__":
    for each in LAYOUTS:
        print(write_geobench(Path(sys.argv[1]), each))
