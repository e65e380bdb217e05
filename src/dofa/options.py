"""Options that several commands share, each defined once; `cli` makes a flag of every field.

Attributes of these classes are the help of their flags. Nothing is imported here that takes time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Format = Literal["cog", "zarr", "geoparquet"]
Precision = Literal["auto", "float32", "bf16"]


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is opened.

    Attributes:
        sensor: what took the scene (dofa sensors lists them).
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
        mask_values: classes of it to leave out, as numbers or by name.
        strict: what would be assumed is an error.
    """

    sensor: str | None = None
    bands: Sequence[str] | None = None
    wavelengths: Sequence[float] | None = None
    dn_offset: str | float | None = None
    dn_scale: float | None = None
    unit: str | None = None
    nodata: float | None = None
    gsd: float | None = None
    mask: str | None = None
    mask_values: Sequence[int | str] | None = None
    strict: bool = False


@dataclass(frozen=True)
class ScenesOptions(SceneOptions):
    """How scenes are opened.

    Attributes:
        stack: the files are one scene: its bands, or several sensors of one place.
    """

    stack: bool = False


@dataclass(frozen=True)
class RunOptions:
    """How a model is run.

    Attributes:
        stats: whose statistics normalise the bands: scene (of a picture the part shown), dataset (all scenes given),
            checkpoint, or the name of a sensor the checkpoint knows. A head has its own; others need --force.
        stride: pixels between shifted passes that are averaged, a divisor of the patch: finer maps for more time. A
            head with a decoder maps every pixel in one pass; a picture is as fine as is seen and soon computed.
        tile: pixels a side that the model sees at once; what the weights, or the head, were trained at unless given.
        overlap: pixels that neighbouring tiles share; a third of a tile unless given.
        batch: tiles at a time.
        precision: bf16 where the machine multiplies it fast, unless told.
        device: cpu, cuda, cuda:1, …; CUDA where there is one.
        compile: run the model through torch.compile; pays for long jobs.
    """

    stats: str | None = None
    stride: int | None = None
    tile: int | None = None
    overlap: int | None = None
    batch: int = 16
    precision: Precision = "auto"
    device: str | None = None
    compile: bool = False

    def settings(self) -> dict[str, Any]:
        """As arguments of `dofa.embed` and of what is built on it."""
        return dict(vars(self))


@dataclass(frozen=True)
class JobOptions(RunOptions):
    """How a model is run.

    Attributes:
        cluster: a Dask scheduler whose workers run the tiles (tcp://HOST:8786), or local:N for N processes here.
    """

    cluster: str | None = None


@dataclass(frozen=True)
class OutputOptions:
    """What is written.

    Attributes:
        format: of the files; by the name of a single one, else cog.
        overwrite: replace files that are there, and forget an interrupted run with other settings.
    """

    format: Format | None = None
    overwrite: bool = False
