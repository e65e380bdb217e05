"""Features of scenes: what the encoder says of every patch, pixel or tile, as arrays with a place.

for window, features in dofa.embed("scene.tif", "dofa-v2-base", sensor="sentinel-2-l2a"):
    …                                        # (K, h, w) float32, NaN where there is no measurement
dofa.embed("scene.tif", model, stride=4, pca=16).to_xarray()
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import dofa
from dofa.errors import ConfigError, DofaError
from dofa.inference import cluster as clusters
from dofa.inference.engine import Job
from dofa.inference.inputs import Inputs, resolve_inputs, warn_of_own_statistics
from dofa.inference.many import OnError, leave_out_failing
from dofa.inference.principal_components import Projection
from dofa.inference.scene_statistics import measure
from dofa.inference.tile_encoder import EncoderTiles, What, plan_for_encoder, specialised, tile_side
from dofa.inference.tiles import Plan
from dofa.inference.value_checks import check_values
from dofa.inference.workers import in_bf16
from dofa.model.checkpoint import encoder_sha256, load
from dofa.model.encoder import DOFA
from dofa.model.heads import Block as Level
from dofa.model.heads import level_name
from dofa.options import Precision
from dofa.pixels import Float
from dofa.scene.grid import Window
from dofa.scene.metadata import iso_date
from dofa.scene.scene import Scene, open_scene

if TYPE_CHECKING:
    import xarray

    from dofa.outputs.layout import Dtype

Settled = TypeVar("Settled", bound=Inputs)
SAMPLE_TILES = 48  # that a projection and the scale of int8 are fitted on, over all scenes together


@dataclass(frozen=True)
class Embedding:
    """Features of one scene, computed as they are asked for.

    Iterating gives (window of cells, (K, h, w) float32 with NaN where there is no measurement), block by block.

    Attributes:
        inputs: the scene and what normalises it.
        plan: how it is cut; `plan.shape` are the rows and columns of cells.
        tiles: the encoder.
        meta: what a file of these features says of itself.
        settings: of `cluster.run`.
    """

    inputs: Inputs
    plan: Plan
    tiles: EncoderTiles
    meta: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """What the engine runs."""
        return Job(self.inputs, self.plan, self.tiles)

    @property
    def transform(self) -> tuple[float, float, float, float, float, float] | None:
        """Affine coefficients of the cells, None where the scene has no place."""
        found = self.inputs.scene.transform
        return None if found is None else self.plan.transform(found)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the channels: `pc1`…, or the block and the number of the feature in it."""
        if self.tiles.projection is not None:
            return tuple(f"pc{i + 1}" for i in range(self.tiles.channels))
        blocks, width = self.tiles.blocks, self.tiles.vit.config.width
        return tuple(f"{level_name(block)}_{i}" for block in blocks for i in range(width))

    def __iter__(self) -> Iterator[tuple[Window, Float]]:
        for block in clusters.run([self.job], **self.settings):
            yield block.window, np.where(block.valid, block.values, np.float32(np.nan))

    def array(self) -> Float:
        """All of it in memory, (K, rows, columns)."""
        out = np.full((self.tiles.channels, *self.plan.shape), np.nan, np.float32)
        for window, values in self:
            out[:, window.rows, window.cols] = values
        return out

    def to_xarray(self) -> "xarray.DataArray":
        """All of it in memory, with coordinates at the centres of the cells, CRS and names."""
        from dofa.inference.saving import output_of
        from dofa.outputs.reading import data_array

        return data_array(self.array(), output_of(self, Path("features.tif"), "float32").layout)

    def write(self, path: str | Path, *, dtype: "Dtype" = "float16", overwrite: bool = False) -> Path:
        """Write a .tif, .zarr or .parquet; see `dofa.inference.saving.save`."""
        from dofa.inference.saving import save

        return save([self], [Path(path)], dtype=dtype, overwrite=overwrite)[0]


def embed(
    scene: Scene | str | Path | Sequence[str | Path],
    model: DOFA | str | Path,
    *,
    level: What = "patch",
    blocks: Sequence[Level] = ("pooled",),
    stride: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    pca: int | None = None,
    stats: str | None = None,
    batch: int = 16,
    precision: Precision = "auto",
    device: str | None = None,
    compile: bool = False,
    cluster: str | None = None,
    progress: Callable[[int, int], None] = lambda tiles, read: None,
    **opening: Any,
) -> Embedding:
    """Features of one scene.

    Args:
        scene: open, or what `open_scene` takes, with its other arguments in `opening` (`sensor`, `bands`, …).
        model: an encoder, or its name or folder.
        level: `patch`, one vector a patch; `pixel`, maps upsampled to pixels; `tile`, one vector a window.
        blocks: numbers from 0 (negative from the end), and `pooled`: the last block with the pooled vector's norm.
        stride: pixels between shifted passes that are averaged, a divisor of the patch; None for one pass.
        tile: pixels a side that the model sees at once; None for the size the weights were trained at.
        overlap: pixels that neighbouring tiles share; None for a third of a tile.
        pca: keep so many principal components, fitted on a sample of the scene.
        stats: see `dofa.inference.inputs.resolve_inputs`.
        precision: see `engine.run`.
        device: see `engine.run`.
        compile: run the model through torch.compile.
        cluster: workers that run the tiles, and the model on `device` there; see `cluster.run_on_cluster`.
        progress: see `engine.run`.
        opening: further arguments of `open_scene`.

    Raises:
        ConfigError, DataError, CheckpointError: what does not fit together, in one line with the cure.
    """
    (one,) = embed_all(
        [scene], model, level=level, blocks=blocks, stride=stride, tile=tile, overlap=overlap, pca=pca, stats=stats,
        batch=batch, precision=precision, device=device, compile=compile, cluster=cluster, progress=progress, **opening,
    )  # fmt: skip
    return one


def embed_all(
    scenes: Sequence[Scene | str | Path | Sequence[str | Path]],
    model: DOFA | str | Path,
    *,
    level: What = "patch",
    blocks: Sequence[Level] = ("pooled",),
    stride: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    pca: int | None = None,
    stats: str | None = None,
    batch: int = 16,
    precision: Precision = "auto",
    device: str | None = None,
    compile: bool = False,
    cluster: str | None = None,
    progress: Callable[[int, int], None] = lambda tiles, read: None,
    on_error: OnError | None = None,
    **opening: Any,
) -> list[Embedding]:
    """Features of several scenes: like `embed`, with one projection and, for `--stats dataset`, one statistics.

    Beside `scenes` and these, arguments as of `embed`.

    Args:
        on_error: called for a scene that cannot be used, which is left out; None to let its error through.
    """
    model = model if isinstance(model, DOFA) else load(model)
    opened = [scene if isinstance(scene, Scene) else open_scene(scene, **opening) for scene in scenes]
    strict = bool(opening.get("strict"))

    def settle_one(scene: Scene, found: Any) -> Inputs:
        given = resolve_inputs(scene, model.config, stats=stats, measured=found, strict=strict)
        check_values(given)
        return given

    inputs = resolve_all(opened, lambda some: measure(some, stats, model.config), on_error, settle_one)
    warn_of_own_statistics(inputs)
    settings = {"batch": batch, "precision": precision, "device": device, "progress": progress}
    if cluster is not None:  # here only samples are looked at
        settings |= {"cluster": cluster, "compile": compile}
        device, compile = None, False
    digest = encoder_sha256(model)
    tiles_of: dict[Any, EncoderTiles] = {}  # scenes of one sensor share a model, and so their batches
    out = []
    for given in inputs:
        side = tile_side(given, model, tile)
        key = (model.encode_bands(given.wavelengths).detach().cpu().numpy().tobytes(), side)
        if key not in tiles_of:
            tiles_of[key] = EncoderTiles(specialised(model, given, device, compile, precision), level, blocks, side)
        tiles = tiles_of[key]
        plan = plan_for_encoder(given, tiles, side, stride, overlap)
        meta = describe(given, model, digest, plan, level, tiles)
        out.append(Embedding(given, plan, tiles, meta, settings))
    if pca is not None:
        if len({tiles.channels for tiles in tiles_of.values()}) > 1:
            raise ConfigError("--pca: scenes with different numbers of features share no components")
        told = None if on_error is None else lambda one, error: on_error(one.inputs.scene, error)
        out, found = leave_out_failing(out, sample, told)
        projection = Projection.fit(found, pca)
        for tiles in tiles_of.values():
            tiles.project(projection)
        for one in out:
            one.meta["pca"] = {
                "components": pca,
                "explained": [float(v) for v in projection.explained],
                "fitted_on": [o.inputs.scene.name for o in out],
            }
    return out


def resolve_all(
    scenes: Sequence[Scene],
    measure_all: Callable[[Sequence[Scene]], Sequence[Any]],
    on_error: OnError | None,
    settle_one: Callable[[Scene, Any], Settled],
) -> list[Settled]:
    """What normalises each scene.

    Args:
        measure_all: takes the statistics of all scenes, such as `measure`.
        on_error: called for a scene that cannot be used, which is left out; None to let its error through.
        settle_one: makes the inputs of a scene and its measured statistics.
    """
    left, measured = leave_out_failing(list(scenes), measure_all, on_error)
    out = []
    for scene, found in zip(left, measured, strict=True):
        try:
            out.append(settle_one(scene, found))
        except DofaError as error:
            if on_error is None:
                raise
            on_error(scene, error)
    return out


def sample(embeddings: Sequence[Embedding]) -> NDArray[np.float32]:
    """(n, D) features of evenly spaced tiles of all scenes, those with measurements."""
    each = max(1, SAMPLE_TILES // len(embeddings))
    found = []
    for one in embeddings:
        rng = np.random.default_rng(0)
        height, width, side = one.inputs.scene.height, one.inputs.scene.width, one.plan.tile
        last = max(height - side, 0), max(width - side, 0)
        across = max(1, round((each * width / height) ** 0.5))
        for row in np.linspace(0, last[0], max(1, each // across)):
            for col in np.linspace(0, last[1], across):
                # Shaken, or a scene with regular fields would be met at the same place of each.
                corner = np.minimum(np.add((row, col), rng.integers(0, max(1, side // 2), 2)), last).astype(int)
                window = Window(int(corner[0]), int(corner[1]), side, side)
                image, valid = one.inputs.normalised(window)
                if not valid.any():
                    continue
                device = one.tiles.vit.cls_token.device
                low = in_bf16(one.settings.get("precision", "auto"), device)
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=low):
                    maps = one.tiles.maps(torch.from_numpy(image)[None].to(device))[0].float().cpu().numpy()
                cell = side // maps.shape[-1]
                seen = valid.reshape(maps.shape[-2], cell, maps.shape[-1], cell).mean((1, 3)) >= 0.5
                found.append(maps[:, seen].T)
    if not found or not sum(map(len, found)):
        raise ConfigError("no tile with measurements to fit on")
    return np.concatenate(found)


def describe(inputs: Inputs, model: DOFA, digest: str, plan: Plan, level: What, tiles: EncoderTiles) -> dict[str, Any]:
    """What a file of features says of itself; plain JSON.

    Args:
        plan: how the scene is cut.
        level: what has a vector: patch, pixel or tile.
    """
    return {
        "dofa": dofa.__version__,
        "encoder_sha256": digest,
        "licence": model.origin.licence,
        "attribution": model.origin.attribution,
        "model": model.name,
        "scene": inputs.scene.name,
        "date": iso_date(inputs.scene),
        "level": level,
        "blocks": list(tiles.blocks),
        "tile": plan.tile,
        "overlap": plan.overlap,
        "stride": plan.stride,
        "patch": model.config.patch,
        "patch_offset": model.config.patch_offset,
        "gsd_m": inputs.scene.gsd_m,
        "sensors": [s.name for s in inputs.sensors],
        "bands": [list(s.band_names) for s in inputs.sensors],
        "wavelength_um": [float(w) for w in model.band_inputs(inputs.wavelengths)[0]],
        "scaling": [s.to_dict() for s in inputs.scalings],
        "inputs": [match.to_dict() for match in inputs.matches],
    }
