"""`dofa predict`: maps of scenes through a trained head: classes, probabilities, or values."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dofa.errors import ConfigError
from dofa.inference import cluster as clusters
from dofa.inference.areas import Mapped, with_areas
from dofa.inference.band_statistics import BandInputs, BandTiles, band_inputs, band_plan, describe_bands
from dofa.inference.embed import Bar
from dofa.inference.engine import Job
from dofa.inference.features import describe, resolve_all
from dofa.inference.inputs import Inputs, bands_for_head, resolve_inputs
from dofa.inference.many import OnError, Scenes
from dofa.inference.saving import Output, digest, write_all
from dofa.inference.scene_statistics import measure
from dofa.inference.tile_encoder import EncoderTiles, plan_for_encoder, specialised
from dofa.inference.tiles import Plan
from dofa.inference.value_checks import check_values
from dofa.model.checkpoint import load
from dofa.model.encoder import DOFA
from dofa.model.heads import Head, load_head
from dofa.options import JobOptions, OutputOptions, Precision, ScenesOptions
from dofa.outputs.work_file import Layout
from dofa.pixels import Float
from dofa.scene.scene import Scene

Wanted = Literal["classes", "probabilities"]
GSD_APART = 1.5  # a scene whose pixels differ by more from those the head was trained on is refused
CLASS_NODATA = 255


class HeadTiles(nn.Module):
    """An encoder with a head, as the engine runs it. A linear head and the joining of tiles commute: few channels.

    A linear head answers for every patch, one with a decoder for every pixel that the patches cover.
    """

    def __init__(self, encoder: EncoderTiles, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.decoder = None if head.decoder is None else head.module().to(encoder.vit.cls_token.device)
        self.patch, self.offset = encoder.patch, encoder.offset
        self.cell = encoder.cell if self.decoder is None else 1
        self.channels = len(head.class_names)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised (B, C, h, w) to (B, K, h / cell, w / cell): logits, or values of a regression."""
        maps = self.encoder.maps(images)
        if self.decoder is None:
            return self.head.apply(maps)
        size = (self.patch * maps.shape[-2], self.patch * maps.shape[-1])
        logits: Tensor = self.decoder(maps.chunk(len(self.head.levels), 1), size)
        return logits.float()


@dataclass(frozen=True)
class Prediction:
    """The map of one scene, computed when it is written.

    Attributes:
        inputs: the scene and what normalises it.
        plan: how it is cut.
        tiles: encoder and head, or a head of band statistics.
        meta: what the file says of itself.
    """

    inputs: Inputs
    plan: Plan
    tiles: HeadTiles | BandTiles
    meta: dict[str, Any]

    @property
    def job(self) -> Job:
        """What the engine runs."""
        return Job(self.inputs, self.plan, self.tiles)

    def output(self, path: Path, wanted: Wanted) -> Output:
        """The file that is made of it.

        Args:
            path: of the file; its suffix says the form.
            wanted: `classes` or `probabilities`; a regression has neither and gives its values.

        Raises:
            ConfigError: classes that do not exclude each other, or that do not fit in 8 bits.
        """
        scene, head = self.inputs.scene, self.tiles.head
        classes = head.task != "regression" and wanted == "classes"
        if classes and head.task == "multilabel":
            raise ConfigError("the head's classes do not exclude each other: map them with --output probabilities")
        key = {
            "scene": scene.fingerprint,
            "plan": asdict(self.plan),
            "map": {**self.meta, "model": None, "wanted": wanted},
        }
        nodata = CLASS_NODATA if head.nodata is None else head.nodata
        if classes and len(head.class_names) > nodata:
            raise ConfigError(
                f"{len(head.class_names)} classes and nodata {nodata} do not fit in 8 bits: map probabilities"
            )
        layout = Layout(
            height=self.plan.shape[0],
            width=self.plan.shape[1],
            channels=1 if classes else len(head.class_names),
            dtype="uint8" if classes else "float32",
            names=("class",) if classes else head.class_names,
            crs=scene.crs,
            transform=self.plan.transform(scene.transform) if scene.transform is not None else (1, 0, 0, 0, 1, 0),
            control_points=self.plan.control_points(scene.control_points),
            nodata=nodata if classes else float("nan"),
            meta={**self.meta, "job": digest(key)},
            class_names=head.class_names if classes else None,
            colours=head.colours if classes else None,
        )
        return Output(path, layout, key, _stored(head, classes, nodata))


def _stored(head: Head, classes: bool, nodata: int) -> Callable[[Float, NDArray[np.bool_]], NDArray[Any]]:
    def stored(values: Float, valid: NDArray[np.bool_]) -> NDArray[Any]:
        if classes:
            return np.where(valid, values.argmax(0), nodata).astype(np.uint8)[None]
        if head.task != "regression":
            values = head.probabilities(torch.from_numpy(values)[None])[0].numpy()
        return np.where(valid, values, np.float32(np.nan)).astype(np.float32)

    return stored


def predict_all(
    scenes: Sequence[Scene],
    model: DOFA | None,
    head: Head,
    *,
    stride: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    stats: str | None = None,
    force: bool = False,
    device: str | None = None,
    compile: bool = False,
    precision: Precision = "auto",
    on_error: OnError | None = None,
) -> list[Prediction]:
    """Maps of scenes through one head.

    Args:
        model: the encoder the head was trained on; another is refused. None for a head of band statistics.
        stride: pixels between shifted passes that are averaged, a divisor of the patch; None for one pass. A head with
            a decoder has its own way from patches to pixels and takes one pass.
        tile: pixels a side; None for the size the head was trained at.
        overlap: pixels that neighbouring tiles share; None for a third of a tile.
        stats: other statistics than the head's, with `force`; see `dofa.inference.inputs.resolve_inputs`.
        force: take other statistics, and scenes of any pixel size.
        compile: run the encoder through torch.compile.
        precision: the map will be run in; see `engine.run`.
        on_error: called for a scene that cannot be used, which is left out; None to let its error through.

    Raises:
        CheckpointError: another encoder.
        ConfigError: a scene of another pixel size or without the head's bands, or settings that do not fit.
    """
    head.require(model)
    if model is None:
        return _band_maps(scenes, head, stride, tile, overlap, stats, force, on_error)
    if head.decoder is not None and stride not in (None, 1):
        raise ConfigError(f"--stride {stride}: a {head.decoder.kind} decoder answers for every pixel: leave it out")

    def settle_one(scene: Scene, found: Any) -> Inputs:
        check_head(scene, head, force)
        inputs = resolve_inputs(scene, model.config, stats=stats, measured=found, head=head, force=force)
        check_values(inputs)
        return inputs

    out: list[Prediction] = []
    shared: dict[Any, HeadTiles] = {}
    for inputs in resolve_all(scenes, lambda some: measure(some, stats), on_error, settle_one):
        scene = inputs.scene
        patch = model.config.patch
        side = patch * -(-(tile or head.tile_size) // patch) if tile is None else tile
        side = min(side, patch * -(-max(scene.height, scene.width) // patch))
        key = (model.encode_bands(inputs.wavelengths).detach().cpu().numpy().tobytes(), side)
        if key not in shared:
            vit = specialised(model, inputs, device, compile, precision)
            shared[key] = HeadTiles(EncoderTiles(vit, "patch", head.levels, side), head)
        tiles = shared[key]
        plan = plan_for_encoder(inputs, tiles, side, stride, overlap)
        meta = describe(inputs, model, str(head.encoder_sha256), plan, "patch", tiles.encoder)
        out.append(Prediction(inputs, plan, tiles, {**meta, **_of_head(head)}))
    return out


def _of_head(head: Head) -> dict[str, Any]:
    """What a map says of its head."""
    told = {"task": head.task, "classes": list(head.class_names), "head_sha256": head.sha256}
    return {"head": told, "validation": head.validation}


def _band_maps(
    scenes: Sequence[Scene],
    head: Head,
    stride: int | None,
    tile: int | None,
    overlap: int | None,
    stats: str | None,
    force: bool,
    on_error: OnError | None,
) -> list[Prediction]:
    """Maps of scenes through a head of band statistics; arguments as of `predict_all`."""
    if stats is not None:
        raise ConfigError(f"--stats {stats}: band statistics are read in physical values: leave it out")

    def settle_one(scene: Scene, _: Any) -> BandInputs:
        check_head(scene, head, force)
        inputs = band_inputs(scene, head)
        check_values(inputs, unit_only=True)
        return inputs

    shared: dict[int, BandTiles] = {}
    out = []
    for inputs in resolve_all(scenes, lambda some: [None] * len(some), on_error, settle_one):
        side = tile or head.tile_size
        tiles = shared.setdefault(side, BandTiles(head, side))
        plan = band_plan(inputs, tiles, stride, tile, overlap)
        out.append(Prediction(inputs, plan, tiles, {**describe_bands(inputs, plan), **_of_head(head)}))
    return out


def check_head(scene: Scene, head: Head, force: bool) -> None:
    """Refuse a scene without the head's bands or with pixels of another size, and warn of another sensor.

    Args:
        scene: with its pixels' size, or none.
        head: with the bands and the size it was trained at.

    Raises:
        ConfigError: a band is missing, or the sizes differ by more than 1.5 ×, and nobody accepted that.
    """
    sensor, _ = bands_for_head(scene, head)
    if sensor.name != head.sensor.name:
        warnings.warn(
            f"{scene.name} is of {sensor.name}, the head was trained on {head.sensor.name}: bands of the same names "
            "are taken, and the map is as good as their numbers agree",
            stacklevel=2,
        )
    if force or scene.gsd_m is None:
        return
    apart = max(scene.gsd_m / head.gsd_m, head.gsd_m / scene.gsd_m)
    if apart > GSD_APART:
        raise ConfigError(
            f"{scene.name}: its pixels measure {scene.gsd_m:g} m, the head was trained on {head.gsd_m:g} m: "
            f"resample it with --gsd {head.gsd_m:g}, or accept it with --force",
            {"--gsd": f"{head.gsd_m:g}"},
        )


def predict(
    scenes: Sequence[str],
    *,
    head: Path,
    out: Path,
    weights: str | None = None,
    output: Wanted = "classes",
    force: bool = False,
    opening: ScenesOptions = ScenesOptions(),
    run: JobOptions = JobOptions(),
    files: OutputOptions = OutputOptions(),
) -> Mapped:
    """Map scenes with a trained head.

    What each class covers is printed, and kept as JSON beside each map: pixels, hectares on the ground, percent.
    Of several scenes one that fails stops no other: it is named at the end with its reason, and the same command does
    it again. Exit status: 0 when all scenes were written, 2 when one failed or nothing was begun, 130 when interrupted.

    Args:
        scenes: files, folders, STAC items or addresses; each is a scene of its own unless --stack is given. A folder of
            band files, or of one product, is one scene, a folder of files with several bands each many scenes.
        head: folder with head.json and head.safetensors, as `dofa probe` and `dofa finetune` save it.
        out: file for one scene (.tif, .zarr, .parquet); folder for several.
        weights: model folder or name: the encoder that the head was trained on; none for a head of band statistics.
        output: classes: a map with names and colours; probabilities: one channel a class. A regression gives values.
        force: accept other statistics than the head's, and pixels of another size.
    """
    trained = load_head(head)  # small; the weights are loaded, or fetched, when the scenes are found right
    if weights is None:
        trained.require(None)
    if not (opening.sensor or opening.bands or opening.wavelengths):
        opening = replace(opening, sensor=trained.sensor.name)
    given = Scenes(scenes, opening, out, files)
    encoder = None if weights is None else load(weights)
    maps = predict_all(
        given.opened, encoder, trained, stride=run.stride, tile=run.tile, overlap=run.overlap, stats=run.stats,
        force=force, device=run.device if run.cluster is None else None,
        compile=run.compile and run.cluster is None, precision=run.precision, on_error=given.fail,
    )  # fmt: skip
    outputs = [one.output(given.paths[id(one.inputs.scene)], output) for one in maps]
    bar = Bar("mapping")
    settings: dict[str, Any] = {"batch": run.batch, "precision": run.precision, "device": run.device}
    settings["progress"] = bar.advance
    if run.cluster is not None:
        settings |= {"cluster": run.cluster, "compile": run.compile}
    with bar.over([m.job for m in maps]):
        done = write_all(
            [m.job for m in maps], outputs, kind=files.format, overwrite=files.overwrite,
            blocks=lambda jobs: clusters.run(jobs, **settings), on_error=given.fail,
        )  # fmt: skip
    return with_areas(given.written(done), trained.task)
