"""Sensors as data: which bands an instrument has, at which wavelengths, and what its numbers mean.

A sensor is one YAML file. The catalogue beside this module holds the ones we know; a user's own file has the same form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from dofa.errors import ConfigError, nearest
from dofa.pixels import Scaling

Kind = Literal["optical", "thermal", "sar"]
OPTICAL_RANGE_UM = (0.2, 20.0)


@dataclass(frozen=True)
class Band:
    """One band of a sensor.

    Attributes:
        name: the name its product uses.
        wavelength_um: centre in micrometres; None for SAR, which has none on this scale.
        fwhm_um: full width at half maximum in micrometres.
        kind: optical, thermal or sar.
        polarisation: VV, VH, HH or HV for SAR.
        aliases: other names it goes by.
        gsd_m: ground sampling distance in metres where it differs from the sensor's.
    """

    name: str
    wavelength_um: float | None
    fwhm_um: float | None = None
    kind: Kind = "optical"
    polarisation: str | None = None
    aliases: tuple[str, ...] = ()
    gsd_m: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"band {self.name}: kind is {self.kind!r}; it is one of {', '.join(get_args(Kind))}")
        if self.kind == "sar":
            if self.wavelength_um is not None:
                raise ConfigError(f"band {self.name}: a SAR band has no wavelength here; its polarisation names it")
            if self.polarisation not in ("VV", "VH", "HH", "HV"):
                raise ConfigError(f"band {self.name}: polarisation is {self.polarisation!r}; one of VV, VH, HH, HV")
            return
        if self.wavelength_um is None:
            raise ConfigError(f"band {self.name}: an {self.kind} band needs wavelength_um")
        check_wavelength_um(self.wavelength_um, f"band {self.name}")
        if self.fwhm_um is not None and not 0 < self.fwhm_um < 20:
            raise ConfigError(f"band {self.name}: fwhm_um is {self.fwhm_um}; micrometres, above 0")


@dataclass(frozen=True)
class Sensor:
    """An instrument at one product level: bands in order, ground sampling distance, what the numbers mean.

    Attributes:
        name: unique, lower case, with the level where there are several: sentinel-2-l2a.
        bands: in the order of the product.
        gsd_m: ground sampling distance in metres of the grid all bands are brought to.
        title: one line for people.
        platform: the instrument without the level; sensors of one platform share band names.
        product: of the provider.
        level: what the numbers are physically.
        scaling: default raw-to-physical step (and published statistics, if any); None where every file differs.
        renderings: three band names each, by name; the RGB proxy first.
        aliases: other names of the sensor.
        sources: where the figures come from, each marked looked-up or recalled.
    """

    name: str
    bands: tuple[Band, ...]
    gsd_m: float
    title: str = ""
    platform: str = ""
    product: str = ""
    level: str = ""
    scaling: Scaling | None = None
    renderings: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    sources: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.bands:
            raise ConfigError(f"sensor {self.name} has no bands")
        if not self.gsd_m > 0:
            raise ConfigError(f"sensor {self.name}: gsd_m is {self.gsd_m}; metres, above 0")
        seen: dict[str, str] = {}
        for band in self.bands:
            for key in {n.lower() for n in (band.name, *band.aliases)}:
                if key in seen:
                    raise ConfigError(f"sensor {self.name}: {key!r} names both band {seen[key]} and band {band.name}")
                seen[key] = band.name
        if self.scaling is not None and self.scaling.bands != self.band_names:
            raise ConfigError(f"sensor {self.name}: scaling is for bands {self.scaling.bands}, not {self.band_names}")
        for title, three in self.renderings.items():
            if len(three) != 3:
                raise ConfigError(f"sensor {self.name}: rendering {title} needs three bands")
            for name in three:
                self.band(name)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands in order."""
        return tuple(b.name for b in self.bands)

    def band(self, name: str) -> Band:
        """The band of that name or alias, whatever the case.

        Raises:
            ConfigError: there is none; the nearest names are said.
        """
        for band in self.bands:
            if name.lower() in (band.name.lower(), *(a.lower() for a in band.aliases)):
                return band
        raise ConfigError(f"sensor {self.name} has no band {name!r}: {nearest(name, self.band_names)}")

    def index(self, names: Sequence[str]) -> list[int]:
        """Positions of the named bands."""
        return [self.bands.index(self.band(n)) for n in names]

    def select(self, names: Sequence[str]) -> "Sensor":
        """The same sensor with only the named bands, in the order given; renderings that lost a band are dropped."""
        bands = tuple(self.band(n) for n in names)
        kept = tuple(b.name for b in bands)
        return replace(
            self,
            bands=bands,
            scaling=None if self.scaling is None else self.scaling.select(kept),
            renderings={
                title: three
                for title, three in self.renderings.items()
                if all(self.band(n).name in kept for n in three)
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, whole: `from_dict` gives the same sensor back."""
        return {
            "name": self.name,
            "title": self.title,
            "platform": self.platform,
            "product": self.product,
            "level": self.level,
            "gsd_m": self.gsd_m,
            "aliases": list(self.aliases),
            "bands": [
                {k: (list(v) if isinstance(v, tuple) else v) for k, v in vars(b).items() if v not in (None, ())}
                for b in self.bands
            ],
            "scaling": None if self.scaling is None else self.scaling.to_dict(),
            "renderings": {title: list(three) for title, three in self.renderings.items()},
            "sources": [dict(s) for s in self.sources],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], origin: str = "sensor") -> "Sensor":
        """A sensor from the plain form of `to_dict` or of a catalogue file.

        In a file `scaling` may be short: unit, and scale, offset, clip as single numbers or one a band, with optional
        mean and std lists.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a missing one, or figures that do not fit.
        """
        _known_keys(data, cls, origin)
        for key in ("name", "bands", "gsd_m"):
            if key not in data:
                raise ConfigError(f"{origin}: {key} is missing")
        bands = []
        for entry in data["bands"]:
            _known_keys(entry, Band, f"{origin}, band {entry.get('name', '?')}")
            entry = {"wavelength_um": None, **entry}
            bands.append(Band(**{k: tuple(map(str, v)) if k == "aliases" else v for k, v in entry.items()}))
        names = [b.name for b in bands]
        return cls(
            **{
                **data,
                "bands": tuple(bands),
                "scaling": _scaling(data.get("scaling"), names, origin),
                "renderings": {t: tuple(three) for t, three in (data.get("renderings") or {}).items()},
                "aliases": tuple(data.get("aliases") or ()),
                "sources": tuple(data.get("sources") or ()),
            }
        )


def check_wavelength_um(value: float, what: str) -> None:
    """Raise a ConfigError unless an optical or thermal wavelength lies within 0.2–20 µm."""
    low, high = OPTICAL_RANGE_UM
    if not low <= value <= high:
        hint = f" (this looks like nanometres: divide by 1000, {value / 1000:g})" if 200 <= value <= 20_000 else ""
        raise ConfigError(f"{what}: wavelength {value:g} µm lies outside {low:g}–{high:g} µm{hint}")


def load(path: str | Path) -> Sensor:
    """A user's own sensor from a YAML file of the catalogue's form.

    Raises:
        ConfigError: the file is missing, is no mapping, or its figures do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no sensor file {path}")
    return _parse(path.read_text(encoding="utf-8"), str(path))


@cache
def catalogue() -> dict[str, Sensor]:
    """All catalogued sensors by name, sorted."""
    folder = resources.files("dofa") / "catalogue"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    sensors = (_parse(f.read_text(encoding="utf-8"), f.name) for f in files)
    return {s.name: s for s in sensors}


def get(name: str) -> Sensor:
    """A catalogued sensor by name or alias, or a user's sensor by the path of its YAML file.

    Raises:
        ConfigError: unknown; the nearest names are said.
    """
    if name.endswith((".yaml", ".yml")):
        return load(name)
    known = catalogue()
    key = name.lower()
    if key in known:
        return known[key]
    for sensor in known.values():
        if key in (a.lower() for a in sensor.aliases):
            return sensor
    raise ConfigError(f"unknown sensor {name!r}: {nearest(name, known)} (dofa sensors lists all)")


def _parse(text: str, origin: str) -> Sensor:
    try:
        data = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{origin} holds no mapping of a sensor's fields")
    return Sensor.from_dict(data, origin)


# libyaml's loader reads the catalogue ten times faster where PyYAML was built with it; both are safe.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _scaling(data: dict[str, Any] | None, bands: list[str], origin: str) -> Scaling | None:
    if data is None:
        return None
    if "bands" in data:
        return Scaling.from_dict(data)
    unknown = set(data) - {"unit", "scale", "offset", "clip", "mean", "std", "physical_source", "stats_source"}
    if unknown or "unit" not in data:
        raise ConfigError(f"{origin}: scaling takes unit, scale, offset, clip, mean, std; got {', '.join(data)}")
    scaling = Scaling.uniform(data["unit"], bands, data.get("scale", 1.0), data.get("offset", 0.0), data.get("clip"))
    if data.get("mean") is not None:
        scaling = scaling.with_stats(data["mean"], data["std"], "catalogue")
    return scaling


def _known_keys(data: dict[str, Any], cls: type, origin: str) -> None:
    known = cls.__dataclass_fields__  # type: ignore[attr-defined]
    for key in data:
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {key!r}: {nearest(str(key), known)}")
