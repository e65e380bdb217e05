"""`dofa preview`: a scene in natural or false colours beside the features that a model sees in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dofa.errors import ConfigError
from dofa.inference.features import embed
from dofa.inference.inputs import print_inputs
from dofa.inference.many import Written
from dofa.inference.panels import Panel, colour_panel, draw
from dofa.model.checkpoint import load
from dofa.model.config import EncoderConfig
from dofa.model.encoder import DOFA
from dofa.options import RunOptions, SceneOptions
from dofa.plots import composite
from dofa.scene.coordinates import Pixel, ground, lonlat, pixels
from dofa.scene.first_look import sample_windows
from dofa.scene.grid import Window
from dofa.scene.opening import open_with
from dofa.scene.scene import Scene

CELLS = 384  # across a picture; more cannot be seen in it
BUDGET = 1.5e12  # multiplications and additions that a finer stride may cost: seconds on a laptop


def part_of(scene: Scene, size: int, centre: Pixel | None = None) -> Window:
    """The window of at most `size` pixels a side that is shown.

    Args:
        size: pixels.
        centre: in its middle, unless the border is near; None for the scene's middle, or another place where more of
            the scene is measured.
    """
    height, width = min(size, scene.height), min(size, scene.width)
    if centre is None:
        looked = sample_windows(scene.height, scene.width)
        # The first of equals is the middle.
        best = max(looked, key=lambda w: scene.read(w)[1].mean()) if (height, width) != _size(scene) else looked[0]
        centre = Pixel(best.row + best.height // 2, best.col + best.width // 2)
    row = min(max(centre.row - height // 2, 0), scene.height - height)
    col = min(max(centre.col - width // 2, 0), scene.width - width)
    return Window(row, col, height, width)


def _size(scene: Scene) -> tuple[int, int]:
    return scene.height, scene.width


def fine_stride(config: EncoderConfig, height: int, width: int) -> int:
    """A stride that shows no grid of patches: a quarter of the patch, where its cells can be seen and cost seconds.

    Args:
        height, width: of what is shown, in pixels.
    """
    patch = config.patch
    finer = [s for s in range(1, patch // 2 + 1) if patch % s == 0 and 4 * s >= patch] or [1]
    tokens = 2.25 * height * width / patch**2  # tiles overlap by a third
    once = 24 * config.depth * config.width**2 * tokens
    for stride in finer:
        if max(height, width) <= CELLS * stride and once * (patch / stride) ** 2 <= BUDGET:
            return stride
    return finer[-1]


def captions(part: Scene, whole: Scene, window: Window) -> dict[str, Any]:
    """What every picture of a part of a scene says: further arguments of `draw`.

    Args:
        whole: the scene it was cut from.
    """
    where = None if _size(part) == _size(whole) else (window, _size(whole))
    return {"title": whole.name, "subtitle": describe(part, whole), "ground": ground(part), "where": where}


def describe(scene: Scene, whole: Scene) -> str:
    """What a picture shows, in a line: sensor, size, place.

    Args:
        whole: the scene it was cut from.
    """
    words = [" + ".join(part.sensor.name for part in scene.parts)]
    words.append(
        f"{scene.height} × {scene.width} pixels" if _size(scene) == _size(whole)
        else f"{scene.height} × {scene.width} of {whole.height} × {whole.width} pixels"
    )  # fmt: skip
    if scene.gsd_m is not None:
        words[-1] += f" of {scene.gsd_m:.3g} m"
    place = None if scene.crs is None else lonlat(scene, scene.height / 2, scene.width / 2)
    if place is not None:
        lon, lat = place
        words.append(f"{abs(lat):.3f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.3f}° {'E' if lon >= 0 else 'W'}")
    return "  ·  ".join(words)


def picture(
    scene: Scene,
    model: DOFA,
    path: Path,
    *,
    size: int = 768,
    centre: Pixel | None = None,
    stride: int | None = None,
    **settings: Any,
) -> Window:
    """Draw a scene beside its features.

    Args:
        size: pixels a side that are shown at most.
        centre: what is in the middle; see `part_of`.
        stride: pixels between shifted passes; None for `fine_stride`.
        settings: further arguments of `embed`, such as `stats`, which are then those of the part shown.

    Returns:
        The window that is shown.

    Raises:
        ConfigError, DataError: as `embed`.
    """
    window = part_of(scene, size, centre)
    with scene.crop(window) as part:
        step = fine_stride(model.config, part.height, part.width) if stride is None else stride
        features = embed(part, model, pca=3, stride=step, **settings)
        print_inputs([features.inputs])
        left = colour_panel(part)
        values = features.array()
        seen = np.isfinite(values).all(axis=0)
        shares = features.meta["pca"]["explained"]
        right = Panel(
            composite(values, (0, 1, 2)),
            f"features every {_length(step, part)}",
            cell=step,
            offset=features.plan.offset,
            channels=[f"PC{i} {100 * share:.0f} %{' of variance' * (i == 3)}" for i, share in enumerate(shares, 1)],
            smooth=True,
            missing=not seen.all(),
        )
        draw(path, [left, right], _size(part), **captions(part, scene, window))
    return window


def _length(step: int, scene: Scene) -> str:
    return f"{step} px" if scene.gsd_m is None else f"{step * scene.gsd_m:.3g} m"


def preview(
    scene: Sequence[str],
    *,
    weights: str,
    out: Path,
    at: str | None = None,
    pixel: str | None = None,
    size: int = 768,
    overwrite: bool = False,
    opening: SceneOptions = SceneOptions(),
    run: RunOptions = RunOptions(),
) -> Written:
    """Draw a scene in natural or false colours beside its features.

    Args:
        scene: a file, folder, STAC item or address, or several files that are one scene.
        weights: model folder or name.
        out: .png to write.
        at: LON,LAT in degrees of what is in the middle of the picture; the middle of the scene unless given.
        pixel: ROW,COL of what is in the middle, for scenes without coordinates.
        size: pixels a side that are shown at most; --gsd shows more ground.
        overwrite: replace a picture that is there.
    """
    check_out(out, overwrite)
    if at is not None and pixel is not None:
        raise ConfigError("--at and --pixel both say what is in the middle: give one")
    with open_with(scene, opening) as opened:
        named = pixels(opened, [] if at is None else [at], [] if pixel is None else [pixel])
        shown = picture(
            opened, load(weights), out, size=size, centre=named[0] if named else None, strict=opening.strict,
            **run.settings(),
        )  # fmt: skip
        return Written((out,), notes=(*opened.warnings, *part_note(opened, shown)))


def check_out(out: Path, overwrite: bool, suffixes: Sequence[str] = (".png",)) -> None:
    """Refuse what cannot be written, before anything is computed.

    Args:
        overwrite: whether a file there may be replaced.

    Raises:
        ConfigError: a name of another kind, or a file that is there.
    """
    if out.suffix.lower() not in suffixes:
        raise ConfigError(f"{out}: its name says what is written, and ends with {', '.join(suffixes)}")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists: name another file, or give --overwrite")


def part_note(scene: Scene, shown: Window) -> list[str]:
    """What to say where not all of a scene is shown.

    Args:
        shown: window of it.
    """
    if (shown.height, shown.width) == (scene.height, scene.width):
        return []
    return [
        f"shown: {shown.height} × {shown.width} of {scene.height} × {scene.width} pixels, from row {shown.row}, column "
        f"{shown.col}; --at or --pixel show another part, --size or --gsd more of it"
    ]
