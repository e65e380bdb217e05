"""`dofa embed`: features of scenes, written as files that other programs open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dofa.errors import ConfigError
from dofa.inference.engine import Job
from dofa.inference.features import embed_all
from dofa.inference.inputs import print_inputs
from dofa.inference.many import Scenes, Written
from dofa.inference.saving import save
from dofa.inference.tile_encoder import What
from dofa.options import JobOptions, OutputOptions, ScenesOptions
from dofa.progress import Progress


def embed_command(
    scenes: Sequence[str],
    *,
    weights: str,
    out: Path,
    level: What = "patch",
    blocks: Sequence[int | str] = ("pooled",),
    pca: int | None = None,
    dtype: Literal["float32", "float16", "int8"] = "float16",
    opening: ScenesOptions = ScenesOptions(),
    run: JobOptions = JobOptions(),
    output: OutputOptions = OutputOptions(),
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
        pca: keep so many principal components, fitted on a sample of all scenes.
        dtype: of the numbers; int8 with a scale and a zero for each channel, stored in the file.
    """
    if not blocks:
        raise ConfigError("blocks: name at least one, a number or pooled")
    levels = [_level(b) for b in blocks]
    given = Scenes(scenes, opening, out, output)
    bar = Bar("embedding")
    embeddings = embed_all(
        given.opened, weights, level=level, blocks=levels, pca=pca, progress=bar.advance, strict=opening.strict,
        on_error=given.fail, **run.settings(),
    )  # fmt: skip
    print_inputs([e.inputs for e in embeddings])
    with bar.over([e.job for e in embeddings]):
        done = save(
            embeddings, [given.paths[id(e.inputs.scene)] for e in embeddings], dtype=dtype,
            kind=output.format, overwrite=output.overwrite, on_error=given.fail,
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
            nbytes: of their pixels in the files.
        """
        if self._bar is not None:
            self._bar.advance(tiles, nbytes)
