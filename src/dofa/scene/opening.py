"""Opening a scene as the command line says, apart from the engine, which `dofa chips` does not need."""

from collections.abc import Sequence

from dofa.options import SceneOptions
from dofa.raster.factors import dn_offset_of
from dofa.scene.scene import Scene, open_scene


def open_with(sources: Sequence[str], options: SceneOptions) -> Scene:
    """Open one scene as the command line says.

    Args:
        options: of offsets by file those of these files are taken.

    Raises:
        ConfigError, DataError: as `open_scene`.
    """
    return open_scene(
        sources[0] if len(sources) == 1 else sources,
        options.sensor,
        bands=None if options.bands is None else [None if band == "-" else band for band in options.bands],
        wavelengths_um=options.wavelengths,
        dn_offset=dn_offset_of(options.dn_offset, sources),
        dn_scale=options.dn_scale,
        unit=options.unit,
        nodata=options.nodata,
        gsd_m=options.gsd,
        mask=options.mask,
        mask_values=options.mask_values,
        strict=options.strict,
    )
