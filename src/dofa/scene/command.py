"""`dofa embed`: features of scenes, written as files that other programs open."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dofa.errors import ConfigError
from dofa.progress import Progress
from dofa.scene.encoder import What
from dofa.scene.engine import Job
from dofa.scene.features import embed_all
from dofa.scene.inputs import say
from dofa.scene.layout import FORMATS, Format
from dofa.scene.opening import opening_words
from dofa.scene.saving import save
from dofa.scene.scene import open_scene
from dofa.scene.streams import Precision

SUFFIX: dict[Format, str] = {"cog": ".tif", "zarr": ".zarr", "geoparquet": ".parquet"}
# Of a file; other dots belong to the name (HLS.S30.T10TEK.2020283T185941.v2.0).
ENDING = re.compile(
    r"\.(tiff?|jp2|vrt|nc|zarr|h5|hdf|img|dat|bsq|bil|bip|hdr|png|jpe?g|xml|json|geojson|safe|zip)$", re.I
)
NOT_IN_NAMES = re.compile(r"[^\w.\-+]+")  # an item's id is any text


@dataclass(frozen=True)
class Written:
    """What a command wrote.

    Attributes:
        paths: of the files.
        skipped: those that an earlier run had finished.
        notes: what should be known about them.
    """

    paths: tuple[Path, ...]
    skipped: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def print(self) -> None:
        """One line a file on the terminal, the notes before them."""
        for note in self.notes:
            print(note)
        for path in self.paths:
            print(f"{path}{' (was there)' if path in self.skipped else ''}")


def embed_command(
    scenes: Sequence[str],
    *,
    weights: str,
    out: Path,
    level: What = "patch",
    blocks: Sequence[int | str] = ("pooled",),
    stride: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    pca: int | None = None,
    dtype: Literal["float32", "float16", "int8"] = "float16",
    format: Literal["cog", "zarr", "geoparquet"] | None = None,
    stats: str | None = None,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    wavelengths: Sequence[float] | None = None,
    dn_offset: float | None = None,
    dn_scale: float | None = None,
    unit: str | None = None,
    nodata: float | None = None,
    gsd: float | None = None,
    mask: str | None = None,
    mask_values: Sequence[int | str] | None = None,
    stack: bool = False,
    strict: bool = False,
    batch: int = 16,
    precision: Precision = "auto",
    device: str | None = None,
    compile: bool = False,
    cluster: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Write features of scenes.

    Args:
        scenes: files, folders, STAC items or addresses; each is a scene of its own unless --stack is given.
        weights: model folder or name.
        out: file for one scene (.tif, .zarr, .parquet); folder for several.
        level: patch: one vector a patch; pixel: maps upsampled to pixels; tile: one vector a window.
        blocks: whose features, concatenated: numbers from 0 (negative from the end), and pooled: the last block, with
            the norm that the pooled vector has.
        stride: pixels between shifted passes that are averaged, a divisor of the patch: finer maps for more time.
        tile: pixels a side that the model sees at once; the size the weights were trained at unless given.
        overlap: pixels that neighbouring tiles share; a third of a tile unless given.
        pca: keep so many principal components, fitted on a sample of all scenes.
        dtype: of the numbers; int8 with a scale and a zero for each channel, stored in the file.
        format: of the files; by the name of a single one, else cog.
        stats: whose statistics normalise the bands: scene, dataset (all scenes given), checkpoint, or the name of a
            sensor the checkpoint knows.
        sensor: what took the scenes (dofa sensors lists them).
        bands: names in the files' order, - for one to leave out.
        wavelengths: of the bands in micrometres, in the files' order.
        dn_offset: added to the numbers before the factor: -1000 for Sentinel-2 of baseline 04.00 on.
        dn_scale: factor from the files' numbers to their unit, where it is neither in the files nor the product's.
        unit: what the numbers are, over the files' tags: reflectance, percent, db, linear_power, kelvin, celsius,
            radiance, dn (the product's counts).
        nodata: the number that stands for no measurement.
        gsd: metres a pixel to resample to.
        mask: file or band with classes to leave out, such as SCL.
        mask_values: classes of it to leave out.
        stack: the files are one scene: its bands, or several sensors of one place.
        strict: what would be assumed is an error.
        batch: tiles at a time.
        precision: bf16 where the machine multiplies it fast, unless told.
        device: cpu, cuda, cuda:1, …
        compile: run the model through torch.compile; pays for long jobs.
        cluster: a Dask scheduler whose workers run the tiles (tcp://HOST:8786), or local:N for N processes here.
        overwrite: replace files that are there, and forget an interrupted run with other settings.
    """
    if not blocks:
        raise ConfigError("blocks: name at least one, a number or pooled")
    opening = opening_words(
        sensor=sensor, bands=bands, wavelengths=wavelengths, dn_offset=dn_offset, dn_scale=dn_scale, unit=unit,
        nodata=nodata, gsd=gsd, mask=mask, mask_values=mask_values, strict=strict,
    )  # fmt: skip
    levels = [_level(b) for b in blocks]
    opened = [open_scene(s, **opening) for s in ([list(scenes)] if stack else scenes)]
    paths = output_paths([s.name for s in opened], out, format)
    bar = Bar("embedding")
    embeddings = embed_all(
        opened, weights, level=level, blocks=levels, stride=stride, tile=tile, overlap=overlap, pca=pca, stats=stats,
        batch=batch, precision=precision, device=device, compile=compile, cluster=cluster, progress=bar.advance,
        strict=strict,
    )  # fmt: skip
    say([e.inputs for e in embeddings])
    with bar.over([e.job for e in embeddings]):
        done = save(embeddings, paths, dtype=dtype, kind=format, overwrite=overwrite)
    notes = tuple(w for e in embeddings for w in e.inputs.scene.warnings)
    return Written(tuple(paths), tuple(p for p in paths if p not in done), notes)


def output_paths(names: Sequence[str], out: Path, format: Format | None) -> list[Path]:
    """Where the files of scenes go: `out` for one, else files in the folder `out`, named as the scenes are.

    Args:
        names: of the scenes: their files' or, of a product, its own (a STAC item's id).
        out: as told.
        format: as told.

    Raises:
        ConfigError: a file name for several scenes, or several scenes of one name.
    """
    if len(names) == 1:
        return [out]
    if out.suffix.lower() in FORMATS and not out.is_dir():
        raise ConfigError(f"{out} is one file for {len(names)} scenes: name a folder, or give --stack if they are one")
    stems = [NOT_IN_NAMES.sub("_", ENDING.sub("", name)).lstrip(".") or "scene" for name in names]
    twice = sorted({s for s in stems if stems.count(s) > 1})
    if twice:
        raise ConfigError(f"several scenes are named {', '.join(twice)}: write them to different folders")
    return [out / f"{stem}{SUFFIX[format or 'cog']}" for stem in stems]


def _level(block: int | str) -> Any:
    if block == "pooled" or isinstance(block, int):
        return block
    try:
        return int(block)
    except ValueError:
        raise ConfigError(f"block {block!r}: pooled, or a number (negative from the end)") from None


class Bar:
    """A progress bar that begins when the tiles are known, and leaves out what is only sampled before."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Progress | None = None

    def over(self, jobs: Sequence[Job]) -> Progress:
        """The bar over all tiles of these jobs, a context manager."""
        total = sum(len(job.plan.tiles_of(b)) for job in jobs for b in range(len(job.plan.blocks)))
        self._bar = Progress(self._title, total, 0, True, "tiles")
        return self._bar

    def advance(self, tiles: int, nbytes: int) -> None:
        """So many more tiles, of so many bytes of pixels.

        Args:
            tiles: done.
            nbytes: of their pixels in the files.
        """
        if self._bar is not None:
            self._bar.advance(tiles, nbytes)
