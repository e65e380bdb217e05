"""`dofa embed`: features of scenes, written as files that other programs open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dofa.errors import ConfigError
from dofa.progress import Progress
from dofa.scene.encoder import What
from dofa.scene.engine import Job
from dofa.scene.features import embed_all
from dofa.scene.inputs import say
from dofa.scene.many import Scenes, Written
from dofa.scene.opening import opening_words
from dofa.scene.saving import save
from dofa.scene.streams import Precision


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
    dn_offset: str | float | None = None,
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

    Of several scenes one that fails stops no other: it is named at the end with its reason, and the same command does
    it again. Exit status: 0 when all scenes were written, 2 when one failed or nothing was begun, 130 when interrupted.

    Args:
        scenes: files, folders, STAC items or addresses; each is a scene of its own unless --stack is given. A folder of
            band files, or of one product, is one scene, a folder of files with several bands each many scenes.
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
        dn_offset: added to the numbers before the factor: -1000 for Sentinel-2 of baseline 04.00 on; by file as
            'S2B*=-1000,*=0'.
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
    given = Scenes(scenes, stack=stack, opening=opening, out=out, format=format, overwrite=overwrite)
    bar = Bar("embedding")
    embeddings = embed_all(
        given.opened, weights, level=level, blocks=levels, stride=stride, tile=tile, overlap=overlap, pca=pca,
        stats=stats, batch=batch, precision=precision, device=device, compile=compile, cluster=cluster,
        progress=bar.advance, strict=strict, on_error=given.fail,
    )  # fmt: skip
    say([e.inputs for e in embeddings])
    with bar.over([e.job for e in embeddings]):
        done = save(
            embeddings, [given.paths[id(e.inputs.scene)] for e in embeddings], dtype=dtype, kind=format,
            overwrite=overwrite, on_error=given.fail,
        )  # fmt: skip
    return given.written(done)


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
        total = sum(job.plan.tile_count for job in jobs)
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
