"""The options that all commands on scenes share, apart from the engine, which `dofa chips` does not need."""

from collections.abc import Sequence
from typing import Any


def opening_words(
    *,
    sensor: str | None,
    bands: Sequence[str] | None,
    wavelengths: Sequence[float] | None,
    dn_offset: float | None,
    dn_scale: float | None,
    unit: str | None,
    nodata: float | None,
    gsd: float | None,
    mask: str | None,
    mask_values: Sequence[int | str] | None,
    strict: bool,
) -> dict[str, Any]:
    """The command line's words as arguments of `open_scene`."""
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
