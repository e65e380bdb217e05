"""`dofa chips`: a person's own rasters and labels become a task that `dofa probe` and its kin learn.

From top to bottom: scenes and labels, windows that lie in one block of ground each, pixels that are measured, blocks
dealt out to training, validation and test, and the folder.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dofa.addresses import redact
from dofa.datasets.blocks import SPLITS, assign_blocks, check_frames, check_shares, lay_blocks
from dofa.datasets.chip_folder import ChipWriter, check_free, read_chips
from dofa.datasets.cutting import Chip, Cutter, Reader, Task
from dofa.datasets.labelled import IGNORE
from dofa.datasets.labels import Bounds, Classes, Labels, Placed, read_labels, resolve_classes
from dofa.errors import ConfigError, DataError
from dofa.options import ScenesOptions
from dofa.pixels import RunningStats, Scaling
from dofa.raster import gdal
from dofa.raster.factors import check_dn_offsets
from dofa.scene.opening import open_with
from dofa.scene.scene import Scene
from dofa.sensors import Sensor

__all__ = ["ChipReport", "chips", "read_chips"]

GSD_APART = 0.01  # rasters whose pixels differ by more show things in other sizes


@dataclass(frozen=True)
class ChipReport:
    """What `dofa chips` wrote.

    Attributes:
        path: the folder.
        task: classification or segmentation.
        class_names: by code.
        counts: (K, 3) chips, or labelled pixels, of each class in training, validation and test.
        chips: number of chips in each.
        blocks: number of blocks of ground in each.
        left_out: how many chips could not be made, by reason.
        notes: what should be known about rasters and labels.
    """

    path: Path
    task: Task
    class_names: tuple[str, ...]
    counts: NDArray[np.int64]
    chips: tuple[int, int, int]
    blocks: tuple[int, int, int]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def print(self) -> None:
        """The counts as a table, and what was left out."""
        unit = "chips" if self.task == "classification" else "labelled pixels"
        table = Table("class", *SPLITS, title=f"{sum(self.chips)} chips for {self.task}: {unit} of each class")
        for name, row in zip(self.class_names, self.counts.tolist(), strict=True):
            table.add_row(name, *map(str, row))
        table.add_section()
        table.add_row("chips", *map(str, self.chips))
        table.add_row("blocks", *map(str, self.blocks))
        console = Console()
        console.print(table)
        for reason, count in self.left_out.items():
            console.print(f"left out: {count} {reason}", highlight=False)
        for note in self.notes:
            console.print(f"note: {note}", highlight=False)


def chips(
    rasters: Sequence[str],
    *,
    labels: Sequence[str],
    out: Path,
    task: Task = "classification",
    size: int = 64,
    class_field: str | None = None,
    classes: Sequence[str] = (),
    ignore: Sequence[str] = (),
    background: str | None = None,
    layer: str | None = None,
    labels_crs: str | None = None,
    split: Literal["block", "random"] = "block",
    block: int = 4,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    overwrite: bool = False,
    opening: ScenesOptions = ScenesOptions(),
) -> ChipReport:
    """Cut labelled chips from rasters.

    Args:
        rasters: files, folders or STAC items of one sensor; each is a scene of its own unless --stack is given.
        labels: polygons or points (GeoJSON, GeoPackage, Shapefile), a raster mask, or a .csv of coordinates: one for
            all rasters, or one a raster in their order.
        out: folder to write.
        task: classification: a chip around each point, and chips of which polygons or the mask cover at least half;
            segmentation: chips with a mask of their pixels.
        size: side of a chip in pixels.
        class_field: attribute or column with the class; class, label or the only one unless given.
        classes: VALUE, VALUE=NAME or VALUE=NAME=#RRGGBB of each class, in order; all values of the labels unless given.
        ignore: values of the labels that stand for no class.
        background: name of a class for all that lies outside the polygons.
        layer: of a vector file with several.
        labels_crs: what the labels' coordinates are measured in, over the word of their file.
        split: block: whole blocks of ground go to training, validation and test; random: single chips.
        block: side of a block in chips.
        val_fraction: share of validation.
        test_fraction: share of test.
        seed: of the split.
        overwrite: replace chips that are there.

    Returns:
        What was written.

    Raises:
        ConfigError: settings that do not hold, an unknown field, value, sensor or band.
        DataError: rasters or labels that cannot be used, do not overlap, or give no chip, or a class without training.
    """
    if size < 1 or block < 1:
        raise ConfigError(f"--size {size}, --block {block}: pixels a chip and chips a block, above 0")
    check_shares(val_fraction, test_fraction)
    check_free(out, overwrite)
    groups = [list(rasters)] if opening.stack else [[r] for r in rasters]
    if len(labels) not in (1, len(groups)):
        raise ConfigError(f"{len(labels)} --labels for {len(groups)} rasters: give one for all, or one a raster")
    read = [read_labels(path, class_field=class_field, layer=layer, crs=labels_crs) for path in labels]
    known = resolve_classes(read, classes, ignore, background)
    check_dn_offsets(opening.dn_offset, groups)
    scenes = [open_with(group, opening) for group in groups]
    try:
        of_scene = read if len(read) == len(scenes) else read * len(scenes)
        of, common, notes = _one_kind(scenes, size)
        placed = [one.on(s.grid, known, s.name) for one, s in zip(of_scene, scenes, strict=True)]
        notes += [n for one in read for n in one.notes] + _outside(of_scene, placed)
        notes += [w for s in scenes for w in s.warnings]
        blocks = lay_blocks([s.grid for s in scenes], [s.name for s in scenes], block * size)
        reader = Reader(scenes, common)
        shape = (len(of.bands), size, size)
        with ChipWriter(out, shape, reader.dtype, task == "segmentation", overwrite) as writer:
            cutter = Cutter(reader, writer, task, len(known.names))
            made = [
                chip
                for number, (scene, labelled, ground) in enumerate(zip(scenes, placed, blocks, strict=True))
                for chip in cutter.cut(number, scene, labelled, ground, size)
            ]
            left_out = cutter.left_out
            if not made:
                raise DataError(_nothing(of_scene, scenes, left_out))
            if split == "block":
                check_frames([s.grid for s in scenes], blocks, [(c.scene, c.window) for c in made])
            kept = _kept(known, made)
            units = [c.block if split == "block" else f"{i}" for i, c in enumerate(made)]
            sides = _sides(units, made, [known.names[k] for k in kept], kept, (val_fraction, test_fraction), seed)
            report = _report(out, task, made, kept, sides, known, left_out, notes)
            images, valid, masks = writer.arrays()
            recode = np.full(IGNORE + 1, IGNORE, np.uint8)
            recode[kept] = np.arange(len(kept))
            stats = RunningStats(common.bands)
            for i in range(len(made)):
                if masks is not None:
                    masks[i] = recode[masks[i]]
                if sides[i] == 0:
                    stats.update(common.physical(images[i]), None if valid is None else np.asarray(valid[i]))
            names = [" ".join(group) for group in groups]
            writer.finish(
                {
                    "task": task,
                    "sensor": of.to_dict(),
                    "scaling": common.with_stats(list(stats.mean), list(stats.std), "corpus").to_dict(),
                    "class_names": list(report.class_names),
                    "colours": [list(known.colours[k]) for k in kept],
                    "ignore": IGNORE if task == "segmentation" else None,
                    "notes": [*report.notes, *(f"left out: {n} {reason}" for reason, n in left_out.items())],
                    "split": {
                        "by": split, "side": block * size, "val": val_fraction, "test": test_fraction, "seed": seed,
                    },
                    "labels": [int(recode[c.label]) if task == "classification" else 0 for c in made],
                    "places": [c.block for c in made],
                    "splits": [SPLITS[side] for side in sides.tolist()],
                    "sources": [f"{names[c.scene]}@{c.window.row},{c.window.col}" for c in made],
                }
            )  # fmt: skip
    finally:
        for scene in scenes:
            scene.close()
    return report


# -- scenes -----------------------------------------------------------------------------------------------------------


def _one_kind(scenes: Sequence[Scene], size: int) -> tuple[Sensor, Scaling, list[str]]:
    """The sensor and scaling of all scenes, with the size of their pixels, and what has to be said of it.

    Raises:
        DataError: sensors, bands, units or pixels that differ, or a scene smaller than a chip.
    """
    first, notes = scenes[0], []
    sensor, scaling = first.sensor, first.parts[0].scaling
    for scene in scenes:
        theirs, numbers = scene.sensor, scene.parts[0].scaling
        if (theirs.name, theirs.band_names) != (sensor.name, sensor.band_names):
            raise DataError(
                f"{first.name} is {sensor.name} ({', '.join(sensor.band_names)}), {scene.name} {theirs.name} "
                f"({', '.join(theirs.band_names)}): a task has one sensor; chip them apart, or name --bands"
            )
        if numbers.unit != scaling.unit or numbers.clip != scaling.clip:
            raise DataError(f"{first.name} holds {scaling.unit}, {scene.name} {numbers.unit}: chip them apart")
        if (first.gsd_m is None) != (scene.gsd_m is None):
            raise DataError(f"only one of {first.name} and {scene.name} has a place on Earth: chip them apart")
        if first.gsd_m and scene.gsd_m and abs(scene.gsd_m / first.gsd_m - 1) > GSD_APART:
            raise DataError(
                f"pixels of {first.name} measure {first.gsd_m:g} m, of {scene.name} {scene.gsd_m:g} m: bring them to "
                f"one size with --gsd {first.gsd_m:g}"
            )
        if min(scene.height, scene.width) < size:
            raise DataError(
                f"{scene.name} has {scene.height} × {scene.width} pixels, less than a chip of {size}: give a smaller "
                "--size"
            )
    if any(scene.parts[0].scaling != scaling for scene in scenes):
        notes.append("the rasters' numbers mean different things, so chips hold physical values")
        scaling = Scaling.uniform(scaling.unit, scaling.bands, clip=scaling.clip, physical_source="file")
    own = replace(sensor, scaling=scaling.without_stats(), gsd_m=first.gsd_m or sensor.gsd_m)
    return own, scaling.without_stats(), notes


# -- what there is --------------------------------------------------------------------------------------------------


def _outside(labels: Sequence[Labels], placed: Sequence[Placed]) -> list[str]:
    """How many shapes of each file no raster shows."""
    seen: dict[str, set[int]] = {}
    total = {one.name: sum(one.counts.values()) for one in labels if one.things == "shapes"}
    for one, theirs in zip(labels, placed, strict=True):
        seen.setdefault(one.name, set()).update(theirs.features)
    return [
        f"{count - len(seen[name])} of {count} shapes of {name} lie outside the rasters"
        for name, count in total.items()
        if len(seen[name]) < count
    ]


def _nothing(labels: Sequence[Labels], scenes: Sequence[Scene], left_out: Counter[str]) -> str:
    """Why there is not one chip."""
    ground = [_scene_bounds(scene) for scene in scenes]
    for one, theirs in zip(labels, ground, strict=True):
        own = one.bounds
        if own is None or theirs is None or _overlap(own, theirs):
            break
    else:
        one, own, theirs = labels[0], labels[0].bounds, ground[0]
        assert own is not None
        assert theirs is not None
        swapped = (own[1], own[0], own[3], own[2])
        hint = "; they would with longitude and latitude exchanged" if _overlap(swapped, theirs) else ""
        return f"{one.name} ({_degrees(own)}) does not overlap {scenes[0].name} ({_degrees(theirs)}){hint}"
    if left_out:
        return "no chip is left: " + "; ".join(f"{n} {reason}" for reason, n in left_out.items())
    return (
        f"no chip of {labels[0].name} on {scenes[0].name}: no label, or no window of which labels cover half, lies "
        "inside: give a smaller --size, or label more ground"
    )


def _scene_bounds(scene: Scene) -> Bounds | None:
    return gdal.bounds_lonlat(scene.crs, scene.transform, scene.width, scene.height)


def _overlap(one: Bounds, two: Bounds) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _degrees(bounds: Bounds) -> str:
    west, south, east, north = bounds
    return f"lon {west:.4f} to {east:.4f}, lat {south:.4f} to {north:.4f}"


# -- classes and splits -----------------------------------------------------------------------------------------------


def _kept(classes: Classes, made: Sequence[Chip]) -> list[int]:
    """Codes of the classes that chips show.

    Raises:
        DataError: a class that the user named and no chip shows, or a single class.
    """
    total = np.sum([c.classes for c in made], axis=0)
    absent = [name for name, count in zip(classes.names, total, strict=True) if not count]
    if absent and classes.declared:
        raise DataError(
            f"no chip shows class {', '.join(absent)} of --classes: label it where the rasters are, or leave it out"
        )
    kept = np.flatnonzero(total).tolist()
    if len(kept) < 2:
        raise DataError(
            f"all {len(made)} chips show class {classes.names[kept[0]]}: label another, or name what lies around the "
            "polygons with --background"
        )
    return [int(k) for k in kept]


def _sides(
    units: Sequence[str],
    made: Sequence[Chip],
    names: Sequence[str],
    kept: Sequence[int],
    shares: tuple[float, float],
    seed: int,
) -> NDArray[np.int64]:
    """(N,) numbers of `SPLITS`: all chips of a unit on one side."""
    known, member = np.unique(np.array(units), return_inverse=True)
    counts = np.zeros((len(known), len(kept)), np.int64)
    np.add.at(counts, member, np.stack([c.classes[list(kept)] for c in made]))
    return assign_blocks(counts, *shares, seed, names)[member]


def _report(
    out: Path,
    task: Task,
    made: Sequence[Chip],
    kept: Sequence[int],
    sides: NDArray[np.int64],
    classes: Classes,
    left_out: Counter[str],
    notes: Sequence[str],
) -> ChipReport:
    """Counts by class and split, and notes on classes that one of them lacks."""
    by_chip = np.stack([c.classes[list(kept)] for c in made])
    counts = np.stack([by_chip[sides == part].sum(0) for part in range(3)], axis=1)
    names = tuple(classes.names[k] for k in kept)
    said = list(dict.fromkeys(map(redact, notes)))
    gone = [n for i, n in enumerate(classes.names) if i not in kept]
    if gone:
        said.append(f"no chip shows class {', '.join(gone)}: left out")
    for part in (1, 2):
        lacking = [n for n, c in zip(names, counts[:, part], strict=True) if not c]
        if lacking and (sides == part).any():
            said.append(f"{SPLITS[part]} has no {', '.join(lacking)}: its ground fills too few blocks to say how well")
    return ChipReport(
        path=out,
        task=task,
        class_names=names,
        counts=counts,
        chips=tuple(int((sides == part).sum()) for part in range(3)),  # type: ignore[arg-type]
        blocks=tuple(  # type: ignore[arg-type]
            len({c.block for c, side in zip(made, sides, strict=True) if side == part}) for part in range(3)
        ),
        left_out=dict(left_out),
        notes=tuple(said),
    )
