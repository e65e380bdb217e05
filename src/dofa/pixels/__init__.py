"""The only place that changes pixel values: raw numbers, physical values, other units, the input of a model."""

from dofa.pixels.display import (
    DISPLAY_MAPS,
    HIDDEN,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DisplayMap,
    display_map,
    display_statistics,
    show,
)
from dofa.pixels.precedence import resolve_physical, resolve_stats
from dofa.pixels.scaling import (
    CONSTANT_SHARE,
    UNIT_SPAN,
    Clip,
    ConstantBandWarning,
    Scaling,
    Source,
)
from dofa.pixels.statistics import RunningStats
from dofa.pixels.units import UNIT_MAPS, Float, Unit, UnitMap, convert_units, satlas_white, unit_path

__all__ = [
    "CONSTANT_SHARE",
    "DISPLAY_MAPS",
    "HIDDEN",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "UNIT_MAPS",
    "UNIT_SPAN",
    "Clip",
    "ConstantBandWarning",
    "DisplayMap",
    "Float",
    "RunningStats",
    "Scaling",
    "Source",
    "Unit",
    "UnitMap",
    "convert_units",
    "display_map",
    "display_statistics",
    "resolve_physical",
    "resolve_stats",
    "satlas_white",
    "show",
    "unit_path",
]
