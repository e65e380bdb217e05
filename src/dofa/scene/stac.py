"""STAC items: which assets are the bands of a sensor, and what their numbers mean, from the item's JSON alone.

Read are STAC 1.0 (`eo:bands`, `raster:bands`) and 1.1 (`bands`), as files or from the network.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from dofa import addresses, sensors
from dofa.documents import parse_json
from dofa.errors import ConfigError, DataError, shorten
from dofa.raster import physical_values, remote
from dofa.raster.band_descriptions import FileBand
from dofa.raster.band_names import AUXILIARY, match
from dofa.raster.bands import match_bands
from dofa.raster.factors import FileNumbers, UserNumbers
from dofa.scene.layers import BandFile, Part, Product
from dofa.scene.masks import legend_of
from dofa.sensors import Sensor

SUFFIXES = (".json", ".geojson")
LONGEST_PATH, LONGEST_NAME = 4000, 255  # characters that file systems take
# Media types and endings that hold bands, the ones read fastest over a network first.
FORMATS = (
    re.compile(r"profile=cloud-optimized"),
    re.compile(r"image/(tiff|vnd\.stac\.geotiff)|\.tiff?$"),
    re.compile(r"image/jp2|\.jp2$"),
    re.compile(r"application/(x-)?netcdf|\.(nc|vrt|img)$"),
)
PICTURES = re.compile(r"visual.*|tci.*|true.?colou?r.*|.*preview.*|thumbnail|overview|quicklook|browse", re.IGNORECASE)
PICTURE_ROLES = {"visual", "overview", "thumbnail", "metadata"}
# Collection, platform and product type of an item, and whose bands it has.
PRODUCTS = {
    r"sentinel-?s?-?2.*(l1c|msi1c)": "sentinel-2-l1c",
    r"sentinel-?s?-?2.*(l2a|msi2a)": "sentinel-2-l2a",
    r"hls.?.?s30": "hls-s30",
    r"hls.?.?l30": "hls-l30",
    r"landsat.*(?:l2|level-?2).* landsat.?([5789])": "landsat-{}-l2-sr",
    r"landsat.*(?:l1|level-?1).* landsat.?([89])": "landsat-{}-l1-toa",
    r"landsat.*(?:l1|level-?1).* landsat.?([57])": "landsat-{}-l1",
    r"sentinel-?1.*rtc": "sentinel-1-rtc",
    r"sentinel-?1.*grd": "sentinel-1-grd",
    r"naip": "naip-rgbn",
}


@dataclass(frozen=True)
class AssetBand:
    """One band of an asset, as the item describes it.

    Attributes:
        asset: key of the asset.
        href: what GDAL opens.
        number: of the band in the file, from 1.
        names: it may go by, the most telling first.
        said: all that is said of it, those of the asset below.
        rank: of the file's format, lower is better.
    """

    asset: str
    href: str
    number: int
    names: tuple[str, ...]
    said: Mapping[str, Any]
    rank: int

    @property
    def wavelength_um(self) -> float | None:
        """Centre in micrometres; the nanometres that some items write instead lie far above."""
        value = self._number("eo:center_wavelength", "center_wavelength")
        return value / 1000 if value is not None and value >= 200 else value

    @property
    def fwhm_um(self) -> float | None:
        """Full width at half maximum in micrometres."""
        return self._number("eo:full_width_half_max", "full_width_half_max")

    @property
    def gsd_m(self) -> float | None:
        """Metres a pixel."""
        return self._number("spatial_resolution", "raster:spatial_resolution", "gsd")

    @property
    def scale(self) -> float | None:
        """Factor from number to physical value."""
        return self._number("scale", "raster:scale")

    @property
    def offset(self) -> float | None:
        """Added after the factor, in physical units."""
        return self._number("offset", "raster:offset")

    @property
    def nodata(self) -> float | None:
        """The number for no measurement; NaN and infinity need no telling."""
        return self._number("nodata")

    def _number(self, *keys: str) -> float | None:
        """The first of several entries that is a finite number."""
        for key in keys:
            try:
                value = float(self.said[key])
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if math.isfinite(value):
                return value
        return None


def is_item(source: str) -> bool:
    """Whether a name is that of a STAC item: a JSON file, or an address of one, also as catalogues serve them."""
    if remote.suffix(source) in SUFFIXES:
        return True
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    served = parts.scheme in ("http", "https") and re.search(r"/items/[^/]+/?$", parts.path) is not None
    return served and not any(known.search(remote.suffix(source)) for known in FORMATS)


def read_item(source: str | Path, sensor: Sensor | None = None) -> Product:
    """Understand an item; no image is opened.

    Args:
        source: a JSON file or its address.
        sensor: whose bands are wanted; None to find it by collection, platform and product type.

    Raises:
        DataError: no item, a sensor nobody can tell, bands that several assets hold alike, or files outside the item's
            folder; one line with the item and the cure.
    """
    source = str(source)
    item = _load(source)
    name = str(item.get("id") or source)
    try:
        found = list(_asset_bands(item, source))
        whole = sensor or _sensor(item, found)
        whole, held = _by_wavelengths(item, found) if whole is None else (whole, _choose(found, whole))
        sensor = whole.select([band for band in whole.band_names if band in held])
        said = _numbers(item, sensor, held)
        dtype = str(held[sensor.band_names[0]].said.get("data_type", ""))
        settled = physical_values.resolve_scaling(sensor, said, dtype, UserNumbers(), name)
    except DataError as error:
        text = str(error)
        raise DataError(text if name in text else f"{shorten(name)}: {text}") from None
    except ConfigError as error:  # figures of a band that no sensor has
        raise DataError(f"{shorten(name)}: {error}") from None
    except (ValueError, OSError) as error:  # urllib's, of an address that is none; the file system's, of a name
        raise DataError(f"{shorten(name)}: an asset's address cannot be understood: {error}") from None
    lost = [band for band in whole.band_names if band not in held]
    warnings = (f"bands-left-out: {name}: it has no assets of {', '.join(lost[:13])}",) if lost else ()
    part = Part(sensor, settled.scaling, _files(sensor, held))
    return Product(name, part, _classes(item, source), warnings, settled, said)


# -- the document -----------------------------------------------------------------------------------------------------


def _load(source: str) -> dict[str, Any]:
    """The item, checked to be one."""
    if remote.is_remote(source):
        shown, data = addresses.redact(source), remote.fetch(source)
    else:
        shown = source
        try:
            with Path(source).open("rb") as file:
                data = file.read(remote.LARGEST + 1)
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror or error}") from None
        if len(data) > remote.LARGEST:
            raise DataError(f"{source} is larger than {remote.LARGEST // 2**20} MB: it is no item")
    item = parse_json(data, shown)
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "FeatureCollection":
        features = _dicts(item.get("features"))
        if len(features) != 1:
            some = ", ".join(shorten(str(f.get("id"))) for f in features[:4])
            raise DataError(
                f"{shown} holds {len(features)} items ({some} …): save the one to open as a file of its own"
            )
        item, kind = features[0], features[0].get("type")
    if kind in ("Collection", "Catalog"):
        raise DataError(f"{shown} is a STAC {kind.lower()}: name one of its items")
    assets = item.get("assets") if isinstance(item, dict) else None
    if kind != "Feature" or not isinstance(assets, dict) or not all(isinstance(a, dict) for a in assets.values()):
        raise DataError(f"{shown} is no STAC item: it has no assets")
    if not isinstance(item.get("properties", {}), dict):
        raise DataError(f"{shown} is no STAC item: its properties are no object")
    return dict(item)


def _href(asset: Mapping[str, Any], source: str) -> str:
    """What GDAL opens for an asset.

    A local item may name files in its own folder by relative paths, anything by a whole path or an address. An item
    from the network names addresses: it has no business with local files.
    """
    href = str(asset.get("href", ""))
    scheme = urlsplit(href).scheme.lower() if "://" in href else ""
    if scheme in remote.SCHEMES:
        return href
    if remote.is_remote(source):
        joined = urljoin(source, href)
        if urlsplit(joined).scheme not in ("http", "https") or scheme:
            raise DataError(f"asset {shorten(href)!r} is no address, and an item from the network names no other files")
        return joined
    if scheme == "file":
        return unquote(urlsplit(href).path)
    if scheme:
        known = ", ".join(f"{s}://" for s in remote.SCHEMES)
        raise DataError(f"asset {shorten(href)!r}: addresses begin with {known}")
    if len(href) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in href.split("/")):
        raise DataError(f"asset {shorten(href)!r} is longer than a file system's names")
    if href.startswith("/"):
        return href
    folder = Path(source).resolve().parent
    path = (folder / href).resolve()
    if not path.is_relative_to(folder):
        raise DataError(f"asset {shorten(href)!r} leads out of the folder of {source}: name it by its whole path")
    return str(path)


def _asset_bands(item: Mapping[str, Any], source: str) -> Iterator[AssetBand]:
    """Every band of every asset that is an image, and no picture for people."""
    for key, asset in item["assets"].items():
        told = asset.get("roles")
        roles = {str(role) for role in told} if isinstance(told, list) else set()
        kind = f"{asset.get('type', '')} {remote.suffix(str(asset.get('href', '')))}".lower()
        rank = next((i for i, known in enumerate(FORMATS) if known.search(kind)), None)
        if rank is None or PICTURES.fullmatch(key) or (roles & PICTURE_ROLES and "data" not in roles):
            continue
        href = _href(asset, source)
        lists = [_dicts(asset.get(name)) for name in ("bands", "eo:bands", "raster:bands")]
        own = {k: v for k, v in asset.items() if not isinstance(v, list | dict)}
        count = max(1, *map(len, lists))
        for i in range(count):
            said = dict(own)
            for entries in reversed(lists):
                said.update(entries[i] if i < len(entries) else {})
            names = [said.get("name"), key if count == 1 else None]
            names += [said.get(k) for k in ("eo:common_name", "common_name", "description")]
            yield AssetBand(key, href, i + 1, tuple(str(n) for n in names if n), said, rank)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _classes(item: Mapping[str, Any], source: str) -> dict[str, tuple[str, int]]:
    """Class bands by the name of their legend: the scene classification, Fmask, quality bits."""
    out: dict[str, tuple[str, int]] = {}
    for key, asset in item["assets"].items():
        file = urlsplit(str(asset.get("href", ""))).path.rsplit("/", 1)[-1]
        legend = legend_of(file) or legend_of(key)
        kind = f"{asset.get('type', '')} {remote.suffix(file)}".lower()
        rank = next((i for i, known in enumerate(FORMATS) if known.search(kind)), None)
        if legend is not None and rank is not None and (legend.band not in out or rank == 0):
            out[legend.band] = (_href(asset, source), 1)
    return out


# -- whose bands ------------------------------------------------------------------------------------------------------


def _sensor(item: Mapping[str, Any], bands: Sequence[AssetBand]) -> Sensor | None:
    """The catalogued sensor, by collection, platform and product type; None where we do not know it."""
    properties = item.get("properties", {})
    told = [
        item.get("collection"),
        properties.get("s2:product_type"),
        properties.get("constellation"),
        properties.get("platform"),
        item.get("id"),
    ]
    text = " ".join(str(t) for t in told if t).lower().replace("_", "-")
    for pattern, name in PRODUCTS.items():
        found = re.search(pattern, text)
        if found is not None:
            return sensors.get(name.format(*found.groups()))
    platforms = {str(properties.get(key, "")).lower().replace("_", "-") for key in ("platform", "constellation")}
    fits = [s for s in sensors.catalogue().values() if s.platform in platforms and any(_band(b, s) for b in bands)]
    if len(fits) > 1:
        raise DataError(f"it may be {' or '.join(s.name for s in fits)}: say which with --sensor")
    return fits[0] if fits else None


def _by_wavelengths(item: Mapping[str, Any], bands: Sequence[AssetBand]) -> tuple[Sensor, dict[str, AssetBand]]:
    """A sensor made of the bands that have a wavelength, and the asset of each."""
    spectral = [b for b in bands if b.wavelength_um is not None and not AUXILIARY.fullmatch(b.asset)]
    if not spectral:
        what = f"collection {item.get('collection')}, platform {item.get('properties', {}).get('platform')}"
        names = ", ".join(dict.fromkeys(b.names[0] for b in bands if b.names))
        raise DataError(f"{what} is no product we know, and its bands ({names}) have no wavelengths: name the sensor")
    best = min(band.rank for band in spectral)
    spectral = [band for band in spectral if band.rank == best]
    waves = [band.wavelength_um for band in spectral]
    if len(set(waves)) < len(waves):
        keys = ", ".join(dict.fromkeys(band.asset for band in spectral))
        raise DataError(f"assets {keys} hold bands of the same wavelengths: open the file of the one you want")
    told = [FileBand(i, b.names[0] if b.names else "", b.wavelength_um, b.fwhm_um) for i, b in enumerate(spectral, 1)]
    found = match_bands(told, None, gsd_m=min((b.gsd_m for b in spectral if b.gsd_m), default=1.0))
    return found.sensor, {n: spectral[i - 1] for n, i in zip(found.sensor.band_names, found.numbers, strict=True)}


def _band(band: AssetBand, sensor: Sensor) -> str | None:
    """The sensor's band that an asset's band is, by the first of its names that tells."""
    found = (match(name, sensor) for name in band.names)
    return next((one.name for one in found if one is not None), None)


def _choose(bands: Sequence[AssetBand], sensor: Sensor) -> dict[str, AssetBand]:
    """The asset of each band of a sensor: in the best format, at the resolution the instrument measured it."""
    offered: dict[str, list[AssetBand]] = {}
    for band in bands:
        name = _band(band, sensor)
        if name is not None and not AUXILIARY.fullmatch(band.asset):
            offered.setdefault(name, []).append(band)
    if not offered:
        keys = ", ".join(dict.fromkeys(band.asset for band in bands))
        raise DataError(f"none of its assets ({keys}) is a band of {sensor.name}: name another sensor")
    chosen = {}
    for name, candidates in offered.items():
        native = sensor.band(name).gsd_m or sensor.gsd_m

        def order(band: AssetBand, native: float = native) -> tuple[int, bool, float]:
            gsd = band.gsd_m or native
            return band.rank, gsd != native, gsd

        best = sorted(candidates, key=order)
        if len(best) > 1 and order(best[0]) == order(best[1]) and best[0].href != best[1].href:
            keys = ", ".join(band.asset for band in best if order(band) == order(best[0]))
            raise DataError(f"assets {keys} hold {name} of {sensor.name} alike: open the files you want as a list")
        wave, true = best[0].wavelength_um, sensor.band(name).wavelength_um
        if (
            wave is not None
            and true is not None
            and abs(wave - true) > max(0.05 * true, sensor.band(name).fwhm_um or 0)
        ):
            raise DataError(
                f"asset {best[0].asset} is named as {name} of {sensor.name}, at {true:g} µm, and lies at {wave:g} µm: "
                "name another sensor"
            )
        chosen[name] = best[0]
    return chosen


# -- what the numbers mean --------------------------------------------------------------------------------------------


def _numbers(item: Mapping[str, Any], sensor: Sensor, held: Mapping[str, AssetBand]) -> FileNumbers:
    """What the item says of the numbers, in the form of a file's tags.

    For Sentinel-2 the offset of a band is worth less than what is said of the whole: Earth Search names −0.1 for every
    band, also where `earthsearch:boa_offset_applied` says that the numbers are free of it, and before baseline 04.00.
    """
    bands = [held[name] for name in sensor.band_names]
    product = sensor.scaling
    said = any(b.scale is not None or b.offset is not None for b in bands)
    usual = (product.scale, product.offset) if said and product else ((1.0,) * len(bands), (0.0,) * len(bands))
    scales = [usual[0][i] if b.scale is None else b.scale for i, b in enumerate(bands)]
    offsets = [usual[1][i] if b.offset is None else b.offset for i, b in enumerate(bands)]
    if any(not s for s in scales):
        raise DataError("it says that numbers are to be multiplied with 0: pass a scaling")
    properties = item.get("properties", {})
    tags: dict[str, str] = {}
    band_tags: list[dict[str, str]] = [{} for _ in bands]
    if physical_values.is_sentinel2(sensor, str(bands[0].said.get("data_type", ""))):
        tags, band_tags = _sentinel2_words(properties, bands, scales)
        offsets = [0.0] * len(bands)
    return FileNumbers(
        scales=tuple(scales),
        offsets=tuple(offsets),
        units=tuple(str(b.said.get("unit") or "") for b in bands),
        tags=tags,
        band_tags=tuple(band_tags),
        envi={},
    )


def _sentinel2_words(
    properties: Mapping[str, Any], bands: Sequence[AssetBand], scales: Sequence[float]
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What the item says of the Sentinel-2 offset, as ESA's metadata would: for `words.sentinel2_offset`."""
    of_whole = {str(key).rsplit(":", 1)[-1]: value for key, value in properties.items()}
    baseline = str(of_whole.get("processing_baseline") or properties.get("processing:version") or "").strip()
    applied = of_whole.get("boa_offset_applied")
    tags = {"PROCESSING_BASELINE": baseline} if baseline else {}
    if applied is True:
        return {**tags, "BOA_OFFSET_APPLIED": "true"}, [{} for _ in bands]
    number = physical_values.baseline_number(baseline)
    if number is not None and number < 4:
        return tags, [{} for _ in bands]
    if applied is False and number is not None and all(b.offset is None for b in bands):
        return {**tags, "BOA_ADD_OFFSET": f"{physical_values.SENTINEL2_OFFSET_DN:g}"}, [{} for _ in bands]
    dn = [None if b.offset is None else round(b.offset / s, 6) for b, s in zip(bands, scales, strict=True)]
    return tags, [{} if value is None else {"BOA_ADD_OFFSET": repr(value)} for value in dn]


def _files(sensor: Sensor, held: Mapping[str, AssetBand]) -> tuple[BandFile, ...]:
    """The files of the bands, each once."""
    out = []
    for href in dict.fromkeys(held[name].href for name in sensor.band_names):
        inside = [(name, held[name]) for name in sensor.band_names if held[name].href == href]
        nodata = {band.nodata for _, band in inside}
        out.append(
            BandFile(
                href,
                tuple(name for name, _ in inside),
                tuple(band.number for _, band in inside),
                nodata.pop() if len(nodata) == 1 else None,
            )
        )
    return tuple(out)
