"""Sensors from files: the catalogue by name, a user's own by path."""

from functools import cache
from importlib import resources
from pathlib import Path

from dofa.documents import LARGEST_YAML, parse_yaml, read_bytes
from dofa.errors import ConfigError, nearest, shorten
from dofa.sensors.sensor import Sensor

_FOLDER = resources.files("dofa") / "catalogue"


def load(path: str | Path) -> Sensor:
    """A user's own sensor from a YAML file of the catalogue's form.

    Raises:
        ConfigError: the file is missing, is no text or no YAML, or its figures do not fit; the file is named.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no sensor file {path}")
    return _parse(read_bytes(path, ConfigError, LARGEST_YAML), str(path))


def names() -> list[str]:
    """Names of the catalogued sensors, sorted; no file is read."""
    return sorted(f.name.removesuffix(".yaml") for f in _FOLDER.iterdir() if f.name.endswith(".yaml"))


def catalogue() -> dict[str, Sensor]:
    """All catalogued sensors by name, sorted."""
    return {name: _catalogued(name) for name in names()}


def get(name: str) -> Sensor:
    """A catalogued sensor by name or alias, or a user's sensor by the path of its YAML file.

    Raises:
        ConfigError: unknown; the nearest names are said.
    """
    if name.endswith((".yaml", ".yml")):
        return load(name)
    key = name.lower()
    if key in names():
        return _catalogued(key)  # only this file is read
    aliases = {alias.lower(): sensor for sensor in catalogue().values() for alias in sensor.aliases}
    if key in aliases:
        return aliases[key]
    raise ConfigError(
        f"unknown sensor {shorten(name)!r}: {nearest(name, [*names(), *aliases])} (dofa sensors lists all)"
    )


@cache
def _catalogued(name: str) -> Sensor:
    file = f"{name}.yaml"
    return _parse((_FOLDER / file).read_bytes(), file)


def _parse(raw: bytes, origin: str) -> Sensor:
    data = parse_yaml(raw, origin)
    try:
        return Sensor.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
