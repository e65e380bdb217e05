"""Features to files: what numbers they are stored as, and one run that writes them all, resumed where it stopped."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.addresses import redact_values
from dofa.errors import ConfigError
from dofa.inference import cluster
from dofa.inference.engine import Block, Job, SceneError
from dofa.inference.features import Embedding, sample
from dofa.inference.many import OnError
from dofa.outputs.reading import Features
from dofa.outputs.work_file import Dtype, Format, Layout, Work, open_features
from dofa.pixels import Float
from dofa.raster import remote
from dofa.scene.scene import Scene

INT8_NODATA = -128
AHEAD = 2  # blocks that wait to be written while the model goes on
SPARE = 0.05  # of the range seen in the sample, left on both sides of int8


@dataclass(frozen=True)
class Output:
    """One file to be made of one job.

    Attributes:
        path: of the finished file.
        layout: what it holds.
        key: JSON that tells this job from any other.
        stored: finished values (K, h, w) and validity (h, w) to the numbers that are stored.
    """

    path: Path
    layout: Layout
    key: dict[str, Any]
    stored: Callable[[Float, NDArray[np.bool_]], NDArray[Any]]


def write_all(
    jobs: Sequence[Job],
    outputs: Sequence[Output],
    *,
    kind: Format | None = None,
    overwrite: bool = False,
    blocks: Callable[[Sequence[Job]], Generator[Block, None, None]],
    on_error: OnError | None = None,
) -> list[Path]:
    """Run jobs and write what comes out, each file in its place as soon as it is whole.

    Args:
        jobs: one an output.
        outputs: where they go.
        kind: format; by the name of each file unless given.
        overwrite: replace files that are there.
        blocks: runs the jobs: `cluster.run` with its settings.
        on_error: called for a scene that cannot be run to its end, which is left out; None to stop there.

    Returns:
        The files that were made. Of several, those that an earlier run had finished are left alone.

    Raises:
        ConfigError: an output exists, or an interrupted run had other settings.
        DofaError: the disk is full, or pixels cannot be read; what is done is kept.
    """
    todo = list(range(len(jobs)))
    if len(outputs) > 1 and not overwrite:
        todo = [i for i in todo if not is_done(outputs[i])]
        others = [outputs[i].path for i in todo if outputs[i].path.exists()]
        if others:
            raise ConfigError(
                f"{others[0]} ({len(others)} of {len(outputs)} outputs) exists and was made from other files, weights, "
                "statistics or settings: give --overwrite to replace such outputs, or another folder"
            )
    made: list[Path] = []
    with ExitStack() as stack:
        works = {}
        for i in todo:
            o = outputs[i]
            works[i] = stack.enter_context(Work.open(o.path, o.layout, o.key, kind=kind, overwrite=overwrite))
        while True:
            for i in [i for i in todo if works[i].done == len(jobs[i].plan.blocks)]:
                if not works[i].finished:  # killed, or a scene beside it failed, while the file was finished
                    works[i].finish()
                made.append(outputs[i].path)
                todo.remove(i)
            if not todo:
                return made
            try:
                _write(todo, jobs, outputs, works, blocks)
            except SceneError as error:
                if on_error is None:
                    raise
                failed = todo.pop(error.job)
                scene = jobs[failed].inputs.scene
                # A file that was damaged is another one when it is mended; one behind a network may only be late.
                works[failed].close() if _is_remote(scene) else works[failed].discard()
                on_error(scene, error)
                for i in todo:
                    works[i].sync()


def _write(
    todo: Sequence[int],
    jobs: Sequence[Job],
    outputs: Sequence[Output],
    works: Mapping[int, Work],
    blocks: Callable[[Sequence[Job]], Generator[Block, None, None]],
) -> None:
    """Run the jobs that are to do, from where each stands, and write their blocks."""
    resumed = [replace(jobs[i], skip=works[i].done) for i in todo]
    waiting: deque[Future[None]] = deque()
    whole = True

    def write(block: Block) -> None:
        nonlocal whole
        if not whole:
            return  # what comes behind a block that failed
        whole = False
        work, output = works[todo[block.job]], outputs[todo[block.job]]
        work.write(block.index, block.window.row, block.window.col, output.stored(block.values, block.valid))
        if block.index == len(resumed[block.job].plan.blocks) - 1:
            work.finish()
        whole = True

    # One thread beside the model's, so that blocks are written in their order while the next tiles run. Left by an
    # error elsewhere, it writes what it was given before the works close.
    with ThreadPoolExecutor(1, "dofa-write") as writer, closing(blocks(resumed)) as coming:
        for block in coming:
            waiting.append(writer.submit(write, block))
            while waiting and (waiting[0].done() or len(waiting) > AHEAD):
                waiting.popleft().result()
        for written in waiting:
            written.result()


def _is_remote(scene: Scene) -> bool:
    return any(remote.is_remote(file.href) for part in scene.parts for file in part.files)


def save(
    embeddings: Sequence[Embedding],
    paths: Sequence[Path],
    *,
    dtype: Dtype = "float16",
    kind: Format | None = None,
    overwrite: bool = False,
    on_error: OnError | None = None,
) -> list[Path]:
    """Write features.

    Args:
        embeddings: of `embed_all`.
        paths: one each; .tif, .zarr or .parquet.
        dtype: float32, float16, or int8 with a scale for each channel that is fitted on a sample and stored.
        kind: format; by the names unless given.
        overwrite: replace files that are there.
        on_error: as for `write_all`.

    Raises:
        ConfigError, DataError, DofaError: as `write_all`.
    """
    if dtype == "uint8":
        raise ConfigError("features are stored as float32, float16 or int8")
    scale = zero = None
    if dtype == "int8":
        scale, zero = int8_range(embeddings)
    outputs = [output_of(e, path, dtype, scale, zero) for e, path in zip(embeddings, paths, strict=True)]
    settings = embeddings[0].settings
    return write_all(
        [e.job for e in embeddings],
        outputs,
        kind=kind,
        overwrite=overwrite,
        blocks=lambda jobs: cluster.run(jobs, **settings),
        on_error=on_error,
    )


def output_of(
    embedding: Embedding, path: Path, dtype: Dtype, scale: NDArray[Any] | None = None, zero: NDArray[Any] | None = None
) -> Output:
    """The file of one scene's features.

    Args:
        path: of the file; its suffix says the form.
        scale, zero: (K,) of 8-bit numbers, None for others.
    """
    plan, scene = embedding.plan, embedding.inputs.scene
    key = {
        "scene": scene.fingerprint,
        "plan": asdict(plan),
        "features": {**embedding.meta, "model": None, "scaling": digest(embedding.meta["scaling"])},
        "projection": embedding.tiles.digest,
    }
    layout = Layout(
        height=plan.shape[0],
        width=plan.shape[1],
        channels=embedding.tiles.channels,
        dtype=dtype,
        names=embedding.names,
        crs=scene.crs,
        transform=embedding.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        control_points=plan.control_points(scene.control_points),
        nodata=INT8_NODATA if dtype == "int8" else float("nan"),
        scale=scale,
        zero=zero,
        meta={**embedding.meta, "job": digest(key)},
    )
    return Output(path, layout, key, lambda values, valid: stored_as(layout, values, valid))


def stored_as(layout: Layout, values: Float, valid: NDArray[np.bool_]) -> NDArray[Any]:
    """(K, h, w) values to the numbers that are stored, nodata where not valid.

    Args:
        values: (K, h, w).
        valid: (h, w).
    """
    if layout.scale is not None and layout.zero is not None:
        steps = np.rint((values - layout.zero[:, None, None]) / layout.scale[:, None, None])
        return np.where(valid, np.clip(steps, -127, 127), INT8_NODATA).astype(np.int8)
    if layout.dtype == "float16":
        values = np.clip(values, -65504, 65504)  # an infinity would say less
    return np.where(valid, values, np.nan).astype(layout.dtype)


def int8_range(embeddings: Sequence[Embedding]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and zero of each channel, from what a sample of all scenes holds: value = stored · scale + zero."""
    found = sample(embeddings)
    projection = embeddings[0].tiles.projection
    if projection is not None:
        found = (found - projection.mean.cpu().numpy()) @ projection.axes.cpu().numpy().T
    low, high = found.min(0).astype(np.float64), found.max(0).astype(np.float64)
    spare = SPARE * (high - low)
    low, high = low - spare, high + spare
    return np.maximum((high - low) / 254, 1e-12), (low + high) / 2


def is_done(output: Output) -> bool:
    """Whether the file is there and is the one that this job would make."""
    return output.path.exists() and _job(open_features(output.path)) == output.layout.meta["job"]


def _job(features: Features) -> Any:
    return features.meta.get("job")


def digest(value: Any) -> str:
    """Of anything JSON holds."""
    return hashlib.sha256(json.dumps(redact_values(value), sort_keys=True).encode()).hexdigest()
