"""`dofa pack`: a folder in, a store out; which layout is read by which function."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.readers.folders import sample as draw
from dofa.corpus.split import Method, SplitConfig
from dofa.errors import ConfigError, nearest


@dataclass(frozen=True)
class Layout:
    """A published corpus.

    Attributes:
        reader: module and function behind it: a folder in, a `Reading` out. Its other parameters, of the names that
            `pack_command` has, are what a user may say of this corpus.
        sensor: what took its images; None where the reader takes the choice.
    """

    reader: str
    sensor: str | None = None


LAYOUTS = {
    "hyspecnet": Layout("dofa.corpus.readers.hyspecnet:read_hyspecnet"),
    "satlas-s1": Layout("dofa.corpus.readers.satlas:read_satlas_s1", "sentinel-1-satlas"),
    "satlas-s2": Layout("dofa.corpus.readers.satlas:read_satlas_s2", "sentinel-2-dofa9"),
    "satlas-naip": Layout("dofa.corpus.readers.satlas:read_satlas_naip", "naip-rgb"),
    "five-billion-pixels": Layout("dofa.corpus.readers.gaofen:read_five_billion_pixels", "gaofen-2"),
    "ssl4eo-s12": Layout("dofa.corpus.readers.ssl4eo:read_ssl4eo_s12"),
    "bigearthnet": Layout("dofa.corpus.readers.bigearthnet:read_bigearthnet"),
}


def pack_command(
    layout: str,
    sources: list[str],
    store: str | None = None,
    sensor: str | None = None,
    *,
    tile: int | None = None,
    stride: int | None = None,
    sample: int | None = None,
    bands: str | None = None,
    place: str = "auto",
    labels: bool = False,
    dn_offset: float | None = None,
    dn_scale: float | None = None,
    unit: str | None = None,
    nodata: float | None = None,
    split: Method = "place",
    val_fraction: float = 0.1,
    seed: int = 0,
    min_valid: float = 0.0,
    chunk: int | None = None,
    workers: int | None = None,
    resume: bool = True,
) -> None:
    """Pack images into a store and say what was packed and what was refused.

    Args:
        layout: images (GeoTIFF, PNG, JPEG, npz), or a corpus as published: hyspecnet, satlas-s1, satlas-s2,
            satlas-naip, five-billion-pixels, ssl4eo-s12, bigearthnet.
        sources: the corpus and the store to write; of images any folders, files, glob patterns, .txt lists of them.
        store: folder to write, where it is not the last of the sources.
        sensor: of images its name from `dofa sensors`, or a YAML file of your own; of a corpus with several sensors the
            one wanted.
        tile: side in pixels of the tiles that images are cut into; by default they stay whole, and the scenes of
            five-billion-pixels are cut into 512.
        stride: pixels from tile to tile, by default the tile (256 of the 512 in five-billion-pixels).
        sample: take so many images, drawn by the seed and evenly over places; by default all.
        bands: of the files in their order, as names with commas between and - for a band to leave out, or as the name
            of the sensor whose order they have.
        place: what counts as one place: auto, georeference, path, folder, or a regular expression.
        labels: the name of a file's folder is its class.
        dn_offset: added to the raw numbers: -1000 for Sentinel-2 of baseline 04.00 or later, 0 for none.
        dn_scale: factor from the numbers to their unit, where neither the files nor the product say it.
        unit: what the numbers of images are: reflectance, percent, db, linear_power, kelvin, celsius, radiance, dn.
        nodata: the number that stands for no measurement, where files do not say it.
        split: hold out whole places (place), blocks at one end of each place (blocks), or nothing (none).
        val_fraction: share that is held out.
        seed: which places or blocks are held out, and which images a sample takes.
        min_valid: least share of valid pixels of an image.
        chunk: side of the smallest piece that is read, in pixels.
        workers: threads, by default one a processor.
        resume: continue what was interrupted.
    """
    if layout != "images" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}: {nearest(layout, ('images', *LAYOUTS))}")
    config = SplitConfig(split, val_fraction, seed)
    if store is None:
        *sources, store = sources
        if not sources:
            raise ConfigError(f"say where to write: dofa pack {layout} {store} STORE")
        if os.path.isfile(store) or store.endswith(".txt") or "*" in store:
            raise ConfigError(f"{store}, named last, is where to write: name the store after it, or give --store")
    if layout == "images":
        from dofa.corpus.readers.images import read_images

        if sensor is None:
            raise ConfigError("say which sensor took the images: --sensor NAME (dofa sensors lists them)")
        named = bands if bands is None or "," not in bands else [b if b != "-" else None for b in bands.split(",")]
        reading = read_images(
            sources,
            sensor,
            tile=tile,
            stride=stride,
            bands=named,
            dn_offset=dn_offset,
            dn_scale=dn_scale,
            unit=unit,
            nodata=nodata,
            place=place,
            labels=labels,
        )
    else:
        if len(sources) != 1:
            raise ConfigError(f"{layout} takes one folder, not {len(sources)}: {', '.join(sources)}")
        reading = _read(
            layout,
            Path(sources[0]),
            sensor=sensor,
            tile=tile,
            stride=stride,
            bands=bands,
            dn_offset=dn_offset,
            dn_scale=dn_scale,
            unit=unit,
            nodata=nodata,
            place=None if place == "auto" else place,
            labels=labels or None,
        )
    if sample is not None:
        reading = draw(reading, sample, seed)
    report = pack(reading, store, split=config, workers=workers, chunk=chunk, min_valid=min_valid, resume=resume)
    print(*report.lines(), sep="\n")


def _read(layout: str, folder: Path, **options: Any) -> Reading:
    """The images of a published corpus, read with the options that are not None."""
    known = LAYOUTS[layout]
    module, function = known.reader.split(":")
    read: Callable[..., Reading] = getattr(import_module(module), function)
    given = {name: value for name, value in options.items() if value is not None}
    if known.sensor is not None and given.pop("sensor", known.sensor) != known.sensor:
        raise ConfigError(f"{layout} holds images of {known.sensor}, none of {options['sensor']}: leave --sensor out")
    for name in given:
        if name not in signature(read).parameters:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} belongs to the layout images; {layout} brings its own")
    print(f"looking through {folder}", file=sys.stderr)  # minutes, where it holds millions of files
    return read(folder, **given)
