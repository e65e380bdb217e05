"""Bands and sensors, checked when they are made, and their plain form."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal, get_args

from dofa.errors import ConfigError, nearest, shorten
from dofa.pixels import Scaling
from dofa.settings import check_keys, field_names, number

Kind = Literal["optical", "thermal", "sar"]
LARGEST_GSD_M = 1e7  # metres: a quarter of the Earth
OPTICAL_RANGE_UM = (0.2, 20.0)
# A sensor's name becomes a file's, a store group's and a key of config.json: nothing that could leave a folder.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
        if self.kind not in [*get_args(Kind)]:
            raise ConfigError(
                f"band {self.name}: kind is {shorten(repr(self.kind))}; it is one of {', '.join(get_args(Kind))}"
            )
        if self.gsd_m is not None and not 0 < self.gsd_m < LARGEST_GSD_M:
            raise ConfigError(f"band {self.name}: gsd_m is {self.gsd_m:g}; metres, above 0")
        if self.kind == "sar":
            if self.wavelength_um is not None:
                raise ConfigError(f"band {self.name}: a SAR band has no wavelength here; its polarisation names it")
            if self.polarisation not in ("VV", "VH", "HH", "HV"):
                raise ConfigError(
                    f"band {self.name}: polarisation is {shorten(repr(self.polarisation))}; one of VV, VH, HH, HV"
                )
            return
        if self.polarisation is not None:
            raise ConfigError(f"band {self.name}: only a SAR band has a polarisation; say kind: sar")
        if self.wavelength_um is None:
            raise ConfigError(f"band {self.name}: an {self.kind} band needs wavelength_um")
        check_wavelength_um(self.wavelength_um, f"band {self.name}")
        if self.fwhm_um is not None and not 0 < self.fwhm_um < 20:
            raise ConfigError(f"band {self.name}: fwhm_um is {self.fwhm_um:g}; micrometres, above 0 and below 20")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Band":
        """A band from one entry of a sensor file.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a missing name, or figures that do not fit.
        """
        what = f"band {shorten(str(data.get('name', '?')))}" if isinstance(data, Mapping) else "bands"
        check_keys(data, field_names(cls), what, ("name",))
        numbers = {
            key: None if data.get(key) is None else number(data[key], f"{what}: {key}")
            for key in ("wavelength_um", "fwhm_um", "gsd_m")
        }
        return cls(
            name=_text(data["name"], "bands: name"),
            kind=data.get("kind", "optical"),
            polarisation=data.get("polarisation"),
            aliases=_texts(data.get("aliases"), f"{what}: aliases"),
            **numbers,
        )


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
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"sensor {self.name!r}: a name has letters, digits, dots, hyphens and underscores")
        if not self.bands:
            raise ConfigError(f"sensor {self.name} has no bands")
        if not 0 < self.gsd_m < LARGEST_GSD_M:
            raise ConfigError(f"sensor {self.name}: gsd_m is {self.gsd_m:g}; metres, above 0")
        if self.scaling is not None and self.scaling.bands != self.band_names:
            raise ConfigError(f"sensor {self.name}: scaling is for bands {self.scaling.bands}, not {self.band_names}")
        self._places  # noqa: B018  two bands of one name are an error now, not at the first look-up
        for title, three in self.renderings.items():
            if len(three) != 3:
                raise ConfigError(
                    f"sensor {self.name}: rendering {title} names {len(three)} bands; three make a picture"
                )
            self.index(three)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Position of a band by each of its names, in lower case."""
        places: dict[str, int] = {}
        for i, band in enumerate(self.bands):
            for key in {n.lower() for n in (band.name, *band.aliases)}:
                if key in places:
                    first = self.bands[places[key]].name
                    raise ConfigError(f"sensor {self.name}: {key!r} names both band {first} and band {band.name}")
                places[key] = i
        return places

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the bands in order."""
        return tuple(b.name for b in self.bands)

    @property
    def known_names(self) -> frozenset[str]:
        """Names and aliases of the bands, lower case."""
        return frozenset(self._places)

    def band(self, name: str) -> Band:
        """The band of that name or alias, whatever the case.

        Raises:
            ConfigError: there is none; the nearest names are said.
        """
        return self.bands[self.index([name])[0]]

    def index(self, names: Sequence[str]) -> list[int]:
        """Positions of the bands of those names or aliases, whatever the case.

        Raises:
            ConfigError: there is no such band; the nearest names are said.
        """
        for name in names:
            if name.lower() not in self._places:
                raise ConfigError(f"sensor {self.name} has no band {name!r}: {self._nearest(name)}")
        return [self._places[name.lower()] for name in names]

    def _nearest(self, name: str) -> str:
        """The closest names for an error message: of the bands, or of their aliases where one of these is meant."""
        aliases = {alias for band in self.bands for alias in band.aliases if sum(map(str.isalpha, alias)) > 2}
        close = get_close_matches(name.lower(), [a.lower() for a in aliases], n=2, cutoff=0.6)
        return nearest(name, {*self.band_names, *(a for a in aliases if a.lower() in close)})

    def select(self, names: Sequence[str]) -> "Sensor":
        """The same sensor with only the named bands, in the order given; renderings that lost a band are dropped."""
        bands = tuple(self.bands[i] for i in self.index(names))
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
    def from_dict(cls, data: Mapping[str, Any]) -> "Sensor":
        """A sensor from the plain form of `to_dict` or of a catalogue file.

        In a file `scaling` may be short: unit, and scale, offset, clip as single numbers or one a band, with optional
        mean and std lists.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a missing one, or figures that do not fit.
        """
        check_keys(data, field_names(cls), "sensor", ("name", "bands", "gsd_m"))
        bands = tuple(Band.from_dict(entry) for entry in _list(data["bands"], "bands"))
        renderings = data.get("renderings") or {}
        if not isinstance(renderings, Mapping):
            raise ConfigError(f"renderings is {shorten(repr(renderings))}; names with three bands each")
        return cls(
            name=_text(data["name"], "name"),
            bands=bands,
            gsd_m=number(data["gsd_m"], "gsd_m"),
            **{key: _text(data.get(key) or "", key) for key in ("title", "platform", "product", "level")},
            scaling=_scaling(data.get("scaling"), [b.name for b in bands]),
            renderings={_text(t, "renderings"): _three(three, t) for t, three in renderings.items()},
            aliases=_texts(data.get("aliases"), "aliases"),
            sources=tuple(
                {str(key): _text(value, f"sources: {key}") for key, value in _mapping(entry, "sources").items()}
                for entry in _list(data.get("sources") or [], "sources")
            ),
        )


def check_wavelength_um(value: float, what: str) -> None:
    """Raise a ConfigError unless an optical or thermal wavelength lies within 0.2–20 µm.

    Args:
        value: in micrometres.
    """
    low, high = OPTICAL_RANGE_UM
    if not low <= value <= high:
        hint = f" (this looks like nanometres: divide by 1000, {value / 1000:g})" if 200 <= value <= 20_000 else ""
        raise ConfigError(f"{what}: wavelength {value:g} µm lies outside {low:g}–{high:g} µm{hint}")


def _scaling(data: Any, bands: list[str]) -> Scaling | None:
    if data is None:
        return None
    if "bands" in _mapping(data, "scaling"):
        return Scaling.from_dict(data)
    known = ("unit", "scale", "offset", "clip", "mean", "std")
    check_keys(data, known, "scaling", ("unit",))
    if (data.get("mean") is None) != (data.get("std") is None):
        raise ConfigError("scaling needs mean and std together, or neither")
    figures = {key: _figures(data[key], f"scaling: {key}") for key in known[1:] if data.get(key) is not None}
    mean, std = figures.pop("mean", None), figures.pop("std", None)
    try:
        scaling = Scaling.uniform(data["unit"], bands, **figures)
        return scaling if mean is None else scaling.with_stats(mean, std, "catalogue")
    except (TypeError, IndexError):
        raise ConfigError(
            "scaling: scale and offset are a number or one a band, clip is [low, high] or one such pair a band, "
            "mean and std are one a band"
        ) from None


def _figures(value: Any, what: str) -> Any:
    """A number, or a list of numbers, pairs and gaps, as `Scaling.uniform` takes them."""
    if isinstance(value, list | tuple):
        return [None if v is None else _figures(v, what) for v in value]
    return number(value, what)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} holds {shorten(repr(value))} where fields with names are expected")
    return value


def _list(value: Any, what: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{what} is {shorten(repr(value))}; a list is expected")
    return value


def _text(value: Any, what: str) -> str:
    # YAML reads a bare `no` as false and 12 as a number: the number is surely a name, the truth value surely not.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(
            f"{what} is {shorten(repr(value))}; a text is expected, in quotes where YAML reads it as something else"
        )
    return str(value)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(v, what) for v in _list([] if value is None else value, what))


def _three(value: Any, title: Any) -> tuple[str, str, str]:
    three = _texts(value, f"rendering {title}")
    return three  # type: ignore[return-value]  # the Sensor counts them
