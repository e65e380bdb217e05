"""Folders among the sources: one scene in files of its bands, or many scenes, each in a file or folder of its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dofa import sensors
from dofa.errors import ConfigError, DataError
from dofa.raster import Raster
from dofa.scene.masks import legend_of
from dofa.scene.metadata import tokens
from dofa.scene.sources import images_in, is_product, one_dataset

# Files of metadata that a provider puts beside the images of one product (Landsat, EnMAP, PlanetScope, Pléiades, ESA).
METADATA = re.compile(r"(?P<title>.*?)[_-]?(MTL|ANG|metadata|manifest|MTD_\w+)\.(txt|json|xml|safe)", re.IGNORECASE)
# Files that lie beside scenes: masks and quality layers. A scene may well be called cloudy_2020.tif.
BESIDE = re.compile(r"udm\d*|f?mask\d*|.*[_-]mask|scl|qa|qa_.*|.*_qa|aot|wvp|tci|msk.*", re.IGNORECASE)


@dataclass(frozen=True)
class FoundScenes:
    """What a source of the command line turned out to be.

    Attributes:
        scenes: sources of one scene each.
        note: how a folder was understood, None for anything else.
    """

    scenes: tuple[str, ...]
    note: str | None = None


def scenes_of(source: str, bands: int | None = None) -> FoundScenes:
    """The scenes that a source of the command line stands for.

    Args:
        source: a file, folder or address.
        bands: of each scene where the user said it: by --bands, --wavelengths or a sensor with one band.

    Raises:
        ConfigError: a folder that may be one scene or many.
    """
    folder = Path(source)
    if not folder.is_dir() or one_dataset(folder) or is_product(source) or folder.suffix.lower() == ".safe":
        return FoundScenes((source,))
    images = images_in(folder)
    if not images:
        inside = sorted(str(p) for p in folder.iterdir() if not p.name.startswith(".") and _is_scene(p))
        return FoundScenes((source,)) if not inside else _many(folder, inside)
    if len(_products(folder)) == 1:
        return FoundScenes((source,), f"{folder}: one scene of {len(images)} files")
    names = {image: _band_names(image) for image in images}
    several = [f for f, found in names.items() if found is not None and len(found) > 1]
    beside = [f for f in several if _is_auxiliary(f)]
    several = [f for f in several if f not in beside]
    single = [f for f, found in names.items() if found is not None and len(found) == 1]
    if bands == 1 and not several:
        return _many(folder, [f for f in images if not _is_auxiliary(f)])
    if not several:
        return FoundScenes(
            (source,), f"{folder}: one scene of {len(images)} band {'file' if len(images) == 1 else 'files'}"
        )
    if len(several) == 1 and all(found is not None for found in names.values()):
        return FoundScenes((source,), f"{folder}: one scene of {len(images)} {'file' if len(images) == 1 else 'files'}")
    lone = [f for f in single if not _is_auxiliary(f)]
    if lone:
        raise ConfigError(
            f"{folder} holds files of several bands ({_shown(several)}) and of one ({_shown(lone)}), which may be one "
            f"scene or many: name the files of each scene, such as {folder}/*.tif, with --stack where they are one"
        )
    if _apart([names[f] or [] for f in several]):
        return FoundScenes((source,), f"{folder}: one scene of {len(several)} files")
    return _many(folder, [f for f in images if f not in beside and f not in single], len(beside) + len(single))


def _many(folder: Path, scenes: Sequence[str], beside: int = 0) -> FoundScenes:
    left_out = f" ({beside} masks and quality files beside them are not scenes)" if beside else ""
    return FoundScenes(tuple(scenes), f"{folder}: {len(scenes)} {'scene' if len(scenes) == 1 else 'scenes'}{left_out}")


def _is_scene(path: Path) -> bool:
    """Whether an entry of a folder without images is a scene: a product, a data set, or a folder of images."""
    return is_product(str(path)) or (path.is_dir() and (one_dataset(path) or bool(images_in(path))))


def _products(folder: Path) -> set[str]:
    """Titles of the products whose metadata lie in a folder."""
    found = (METADATA.fullmatch(p.name) for p in folder.iterdir() if not p.name.startswith("."))
    return {match["title"].lower() for match in found if match is not None}


def _band_names(image: str) -> list[str] | None:
    """Descriptions of a file's bands, without alpha; None where it cannot be opened."""
    try:
        with Raster(image) as header:
            return [band.description for band in header.file_bands() if band.colour != "alpha"]
    except (ConfigError, DataError):
        return None  # told when the scene is opened


def _is_auxiliary(image: str) -> bool:
    """Whether a file's name says that it is a mask or a quality layer."""
    return legend_of(image) is not None or any(BESIDE.fullmatch(token) for token in tokens(image))


def _apart(names: Sequence[Sequence[str]]) -> bool:
    """Whether files hold different bands, each described: parts of one scene, such as one file for each resolution."""
    described = [{name.strip().lower() for name in one} for one in names]
    if not all(all(one) for one in described):
        return False
    return sum(map(len, described)) == len(set().union(*described))


def _shown(files: Sequence[str]) -> str:
    return ", ".join(Path(f).name for f in files[:2]) + (", …" if len(files) > 2 else "")


def band_count_of_user(
    sensor: str | None, bands: Sequence[str] | None, wavelengths: Sequence[float] | None
) -> int | None:
    """How many bands of each scene the user named; None where nobody did.

    Args:
        bands: as told, with - for those to leave out.
    """
    told = bands if bands is not None else wavelengths
    if told is not None:
        return len(told)
    return len(sensors.get(sensor).bands) if sensor is not None else None
