"""Sensors as data: which bands an instrument has, at which wavelengths, and what its numbers mean.

A sensor is one YAML file. The catalogue (src/dofa/catalogue) holds the ones we know; a user's own file has the same
form: docs/sensors.md.
"""

from dofa.sensors.files import catalogue, get, load, names
from dofa.sensors.sensor import OPTICAL_RANGE_UM, Band, Kind, Sensor, check_wavelength_um
from dofa.sensors.terminal import describe, formula, show, summary, table

__all__ = [
    "OPTICAL_RANGE_UM",
    "Band",
    "Kind",
    "Sensor",
    "catalogue",
    "check_wavelength_um",
    "describe",
    "formula",
    "get",
    "load",
    "names",
    "show",
    "summary",
    "table",
]
