"""The options that all commands on scenes share, apart from the engine, which `dofa chips` does not need."""

from collections.abc import Sequence
from typing import Any

from dofa.raster.offsets import dn_offset_of, dn_offsets
from dofa.scene.scene import Scene, open_scene


def opening_words(
    *,
    sensor: str | None,
    bands: Sequence[str] | None,
    wavelengths: Sequence[float] | None,
    dn_offset: str | float | None,
    dn_scale: float | None,
    unit: str | None,
    nodata: float | None,
    gsd: float | None,
    mask: str | None,
    mask_values: Sequence[int | str] | None,
    strict: bool,
) -> dict[str, Any]:
    """The command line's options as arguments of `open_with`.

    Raises:
        ConfigError: a --dn-offset that is none.
    """
    dn_offsets(dn_offset)
    return {
        "sensor": sensor,
        "bands": None if bands is None else [None if b == "-" else b for b in bands],
        "wavelengths_um": wavelengths,
        "dn_offset": dn_offset,
        "dn_scale": dn_scale,
        "unit": unit,
        "nodata": nodata,
        "gsd_m": gsd,
        "mask": mask,
        "mask_values": mask_values,
        "strict": strict,
    }


def open_with(sources: Sequence[str], opening: dict[str, Any]) -> Scene:
    """Open one scene as the command line says.

    Args:
        sources: its files.
        opening: of `opening_words`; of offsets by file those of these files are taken.

    Raises:
        ConfigError, DataError: as `open_scene`.
    """
    offset = dn_offset_of(opening["dn_offset"], sources)
    return open_scene(sources[0] if len(sources) == 1 else sources, **{**opening, "dn_offset": offset})
