"""`dofa similar`: how much every place of a scene resembles the ones that are named.

The feature of each cell and of the places, less the scene's mean feature, give the cosine of the angle between them: 1
where they are alike, 0 where they have nothing in common, negative where they differ from the mean in opposite ways.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa.errors import ConfigError, DataError
from dofa.inference import engine
from dofa.inference.embed import Bar
from dofa.inference.features import Embedding, embed, sample
from dofa.inference.inputs import print_inputs
from dofa.inference.many import Written
from dofa.inference.panels import Panel, Ramp, colour_panel, draw, ramp_picture
from dofa.inference.preview import captions, check_out, fine_stride, part_note, part_of
from dofa.inference.saving import Output, digest, write_all
from dofa.model.checkpoint import load
from dofa.model.encoder import DOFA
from dofa.options import RunOptions, SceneOptions
from dofa.outputs.layout import FORMATS
from dofa.outputs.work_file import Layout
from dofa.pixels import Float
from dofa.scene.coordinates import Pixel, pixels
from dofa.scene.grid import Window
from dofa.scene.opening import open_with
from dofa.scene.scene import Scene

RAMP = Ramp("viridis", -1, 1, "cosine similarity to the place")


@dataclass(frozen=True)
class Similarity:
    """How much a scene's cells resemble named places, computed as it is asked for.

    Iterating gives (window of cells, (1, h, w) float32 with NaN where there is no measurement), block by block.

    Attributes:
        embedding: features of the scene.
        places: pixels that were named.
        mean: (D,) feature of a sample of the scene.
        wanted: (D,) mean direction of the places' features from there, of length 1.
    """

    embedding: Embedding
    places: tuple[Pixel, ...]
    mean: Float
    wanted: Float

    def of(self, values: Float, valid: NDArray[np.bool_]) -> Float:
        """(D, h, w) features and validity to (1, h, w) similarity, NaN where not valid.

        Args:
            valid: (h, w).
        """
        apart = values - self.mean[:, None, None]
        length = np.sqrt(np.einsum("dhw,dhw->hw", apart, apart))
        cosine = np.einsum("d,dhw->hw", self.wanted, apart) / np.maximum(length, 1e-12)
        return np.where(valid, np.clip(cosine, -1, 1), np.nan).astype(np.float32)[None]

    def __iter__(self) -> Iterator[tuple[Window, Float]]:
        for block in engine.run([self.embedding.job], **self.embedding.settings):
            yield block.window, self.of(block.values, block.valid)

    def array(self) -> Float:
        """All of it in memory, (rows, columns)."""
        out = np.full(self.embedding.plan.shape, np.nan, np.float32)
        for window, values in self:
            out[window.rows, window.cols] = values[0]
        return out

    def output(self, path: Path) -> Output:
        """The file that is made of it."""
        one = self.embedding
        plan, scene = one.plan, one.inputs.scene
        meta = {**one.meta, "similar_to": [list(place) for place in self.places]}
        key = {"scene": scene.fingerprint, "plan": asdict(plan), "similarity": digest({**meta, "model": None})}
        layout = Layout(
            height=plan.shape[0],
            width=plan.shape[1],
            channels=1,
            dtype="float32",
            names=("similarity",),
            crs=scene.crs,
            transform=one.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            control_points=plan.control_points(scene.control_points),
            nodata=float("nan"),
            meta={**meta, "job": digest(key)},
        )
        return Output(path, layout, key, self.of)


def similarity(
    scene: Scene,
    model: DOFA,
    places: Sequence[Pixel],
    **settings: Any,
) -> Similarity:
    """What resembles places of a scene.

    Args:
        places: pixels of the scene; of several the mean direction counts.
        settings: further arguments of `embed`.

    Raises:
        ConfigError: no place, or as `embed`.
        DataError: a place without a measurement.
    """
    if not places:
        raise ConfigError("similar to what? name a place with --at LON,LAT or --pixel ROW,COL")
    one = embed(scene, model, **settings)
    centre = sample([one]).mean(axis=0, dtype=np.float64).astype(np.float32)
    total = np.zeros(len(centre))
    for place in places:
        apart = feature_at(one, place) - centre
        total += apart / max(float(np.linalg.norm(apart)), 1e-12)
    wanted = (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)
    return Similarity(one, tuple(places), centre, wanted)


def feature_at(one: Embedding, place: Pixel) -> Float:
    """(D,) feature of the cell that holds a pixel: the one that the whole run gives, from the tiles it needs.

    Args:
        place: of the pixel.

    Raises:
        DataError: no measurement there.
    """
    plan = one.plan
    row, col = (place.row + plan.offset) // plan.stride, (place.col + plan.offset) // plan.stride
    # With an offset the last pixels lie behind the last cell.
    row, col = min(row, plan.shape[0] - 1), min(col, plan.shape[1] - 1)
    index, window = next(
        (i, w) for i, w in enumerate(plan.blocks) if w.row <= row < w.row + w.height and w.col <= col < w.col + w.width
    )
    quiet = {**one.settings, "progress": lambda tiles, read: None}
    block = next(engine.run([replace(one.job, skip=index)], **quiet))
    if not block.valid[row - window.row, col - window.col]:
        scene = one.inputs.scene
        raise DataError(f"{scene.name}: row {place.row}, column {place.col} holds no measurement: name another place")
    return np.asarray(block.values[:, row - window.row, col - window.col], np.float32)


def picture(
    scene: Scene,
    model: DOFA,
    places: Sequence[Pixel],
    path: Path,
    *,
    size: int = 768,
    stride: int | None = None,
    **settings: Any,
) -> Window:
    """Draw the ground around places beside what resembles them.

    Args:
        places: pixels of the scene, close enough to be seen together.
        size: pixels a side that are shown at most.
        stride: pixels between shifted passes; None for `fine_stride`.
        settings: further arguments of `embed`, such as `stats`, which are then those of the part shown.

    Returns:
        The window that is shown.

    Raises:
        ConfigError, DataError: places too far apart, or as `similarity`.
    """
    rows, cols = [p.row for p in places], [p.col for p in places]
    centre = Pixel((min(rows) + max(rows)) // 2, (min(cols) + max(cols)) // 2) if places else None
    window = part_of(scene, size, centre)
    marks = [Pixel(p.row - window.row, p.col - window.col) for p in places]
    if any(not (0 <= m.row < window.height and 0 <= m.col < window.width) for m in marks):
        raise ConfigError(f"the places lie further apart than a picture's {size} pixels: raise --size, or write a .tif")
    with scene.crop(window) as part:
        step = fine_stride(model.config, part.height, part.width) if stride is None else stride
        found = similarity(part, model, marks, stride=step, **settings)
        print_inputs([found.embedding.inputs])
        values = found.array()
        right = Panel(
            ramp_picture(values, RAMP),
            "similarity",
            cell=step,
            offset=found.embedding.plan.offset,
            channels=RAMP,
            smooth=True,
            missing=not np.isfinite(values).all(),
        )
        words = captions(part, scene, window)
        draw(path, [colour_panel(part), right], (part.height, part.width), marks=marks, **words)
    return window


def similar(
    scene: Sequence[str],
    *,
    weights: str,
    out: Path,
    at: Sequence[str] = (),
    pixel: Sequence[str] = (),
    size: int = 768,
    overwrite: bool = False,
    opening: SceneOptions = SceneOptions(),
    run: RunOptions = RunOptions(),
) -> Written:
    """Map what resembles a place.

    Args:
        scene: a file, folder, STAC item or address, or several files that are one scene.
        weights: model folder or name.
        out: .tif, .zarr or .parquet for a map of the whole scene, .png for a picture of the ground around the place.
        at: LON,LAT in degrees; of several places the mean counts.
        pixel: ROW,COL, for scenes without coordinates.
        size: pixels a side that a picture shows at most; --gsd shows more ground.
        overwrite: replace a file that is there, and forget an interrupted run with other settings.
    """
    check_out(out, overwrite, [".png", *FORMATS])
    bar = Bar("comparing")
    settings = {**run.settings(), "progress": bar.advance, "strict": opening.strict}
    with open_with(scene, opening) as opened:
        places = pixels(opened, at, pixel)
        model = load(weights)
        if out.suffix.lower() == ".png":
            shown = picture(opened, model, places, out, size=size, **settings)
            return Written((out,), notes=(*opened.warnings, *part_note(opened, shown)))
        found = similarity(opened, model, places, **settings)
        print_inputs([found.embedding.inputs])
        with bar.over([found.embedding.job]):
            write_all(
                [found.embedding.job], [found.output(out)], overwrite=overwrite,
                blocks=lambda jobs: engine.run(jobs, **found.embedding.settings),
            )  # fmt: skip
        return Written((out,), notes=tuple(opened.warnings))
