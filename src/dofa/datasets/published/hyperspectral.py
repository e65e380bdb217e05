"""Hyperspectral scenes with labelled pixels, as they are handed round: a cube and a map of labels in .mat or .npz.

One file is one image of task segmentation; what nobody labelled is `IGNORE`. How it is parted into training and test
is the protocol's side: neighbouring pixels see the same ground, so only blocks with a gap between them are disjoint.
"""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dofa import sensors
from dofa.addresses import redact
from dofa.datasets.labelled import IGNORE, LabelledImages, Raw, digest, file_state, split_words, value_of
from dofa.datasets.published.matfile import load_mat
from dofa.errors import ConfigError, DataError
from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor

INDIAN_PINES = (
    "alfalfa", "corn, no till", "corn, minimum till", "corn", "grass, pasture", "grass, trees", "grass, pasture mowed",
    "hay, windrowed", "oats", "soybean, no till", "soybean, minimum till", "soybean, clean", "wheat", "woods",
    "buildings, grass, trees, drives", "stone, steel towers",
)  # fmt: skip
INDIAN_PINES_HOME = "https://www.ehu.eus/ccwintco/index.php/Hyperspectral_Remote_Sensing_Scenes"
WORDS = ("sensor=", "cube=", "labels=", "gt=")
WAVELENGTHS = {"wavelength_nm": 1e-3, "wavelengths_nm": 1e-3, "wavelength_um": 1.0, "wavelengths_um": 1.0}
FWHM = {"fwhm_nm": 1e-3, "fwhm_um": 1.0}
SAME_UM = 0.0005  # two tables of one instrument differ by rounding only
NEAR_UM = 0.001  # a band asked for by the sensor is this close in the file, or it is another band
NO_DATA = -32768  # of signed files: EnMAP L2A

LARGEST = 2**34  # bytes of an archive's arrays

Arrays = dict[str, NDArray[Any]]


def read_hyperspectral(spec: str) -> LabelledImages:
    """One hyperspectral scene with labelled pixels.

    Args:
        spec: `FILE.npz` or `FILE.mat`, and words. The only array of three axes is the cube, (H, W, C) or (C, H, W), the
            only one of two axes and its size the labels, 0 where nobody labelled; of several, `cube=KEY` and
            `labels=KEY` choose. `gt=FILE` has the labels where they are in another file (`…_gt.mat` beside
            `…_corrected.mat` is found). `sensor=NAME or FILE.yaml` says the bands; without it they are those of
            the file's `wavelength_nm`, `wavelength_um`, or of Indian Pines.

    Returns:
        One image of task segmentation; classes without a pixel are left out, and told.

    Raises:
        DataError: nothing there, no cube with labels, bands nobody names.
        ConfigError: an unknown word, a sensor whose bands are not those of the file.

    Source: Baumgardner et al. 2015, doi 10.4231/R7RX991C (Indian Pines).
    """
    path, words = split_words(spec, WORDS)
    arrays = _load(path)
    beside = value_of(words, "gt")
    other = Path(beside) if beside else path.with_name(path.stem.removesuffix("_corrected") + "_gt" + path.suffix)
    files = [path]
    if beside or (other.is_file() and other != path):
        arrays = {**_load(other), **arrays}
        files.append(other)
    cube_key = _choose(arrays, 3, value_of(words, "cube"), "cube", path)
    cube = arrays[cube_key]
    maps = {k: a for k, a in arrays.items() if a.ndim == 2 and a.shape in (cube.shape[:2], cube.shape[1:])}
    labels_key = _choose(maps, 2, value_of(words, "labels"), "labels", path)
    truth = maps[labels_key]
    cube = _channels_first(cube, truth.shape, path, cube_key)
    if cube.dtype.kind not in "iuf":
        raise DataError(f"{path}: {cube_key!r} holds {cube.dtype}, which are no numbers of an image")
    if truth.dtype.kind == "f" and (truth == np.round(truth)).all():  # MATLAB keeps whole numbers as float64
        truth = truth.astype(np.int64)
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= IGNORE:
        raise DataError(f"{path}: {labels_key!r} is no map of labels from 0 (nobody labelled) to {IGNORE - 1}")
    sensor, notes = _sensor(path, cube_key, len(cube), arrays, value_of(words, "sensor"))
    rows = _rows(path, sensor, len(cube), arrays)
    empty = [i for i, row in enumerate(rows) if not _valid(cube[row]).any()]
    if empty:
        lost = [sensor.band_names[i] for i in empty]
        notes.append(f"{len(lost)} bands hold no data anywhere and are left out: {', '.join(lost)}")
        sensor = sensor.select([name for name in sensor.band_names if name not in lost])
        rows = [row for i, row in enumerate(rows) if i not in empty]
    images = cube[rows]
    valid = np.logical_and.reduce([_valid(plane) for plane in images])
    names, codes = _classes(path, truth, arrays, sensor.name, notes)
    mask = np.full(truth.shape, IGNORE, np.int16)
    for label, code in codes.items():
        mask[truth == label] = code

    def read(index: int) -> Raw:
        return images, None if valid.all() else valid

    def read_mask(index: int) -> NDArray[np.int16]:
        return mask

    scaling = sensor.scaling or Scaling.uniform("dn", sensor.band_names, 1.0)
    return LabelledImages(
        name=path.stem,
        sensor=sensor,
        scaling=scaling.without_stats(),
        class_names=names,
        labels=np.zeros(1, np.int64),
        sources=(str(path),),
        shape=(len(rows), *truth.shape),
        read=read,
        fingerprint=digest([cube_key, labels_key, sensor.to_dict(), [[f.name, *file_state(f)] for f in files]]),
        task="segmentation",
        read_mask=read_mask,
        ignore=IGNORE,
        notes=(*notes, "one scene: only blocks of ground with a gap between them are a test"),
    )


def _load(path: Path) -> Arrays:
    """The arrays of a .npz or .mat file; nothing in it is run."""
    if not path.is_file():
        raise DataError(
            f"{redact(str(path))} does not exist: pass a scene as .npz or .mat; Indian Pines "
            f"(Indian_pines_corrected.mat and Indian_pines_gt.mat) is at {INDIAN_PINES_HOME}"
        )
    if path.suffix not in (".npz", ".mat"):
        raise DataError(f"{path}: hyperspectral scenes are .npz or .mat")
    try:
        if path.suffix == ".mat":
            return load_mat(path)
        with zipfile.ZipFile(path) as archive:
            if (unpacked := sum(member.file_size for member in archive.infolist())) > LARGEST:
                raise DataError(f"{path} would unpack to {unpacked:,} bytes, more than a labelled scene has")
        with np.load(path, allow_pickle=False) as opened:
            # A member that is no .npy comes as its bytes.
            return {key: array for key in opened.files if isinstance(array := opened[key], np.ndarray)}
    except ModuleNotFoundError as error:
        raise DataError(f'{path} needs {error.name}, which is not installed: pip install "dofa[tasks]"') from None
    # NumPy's, SciPy's and HDF5's words for files that are cut off, overwritten, or hold pickled objects.
    except (OSError, ValueError, TypeError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
            tokenize.TokenError, SyntaxError, OverflowError, MemoryError, struct.error) as error:  # fmt: skip
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from None


def _choose(arrays: Arrays, axes: int, said: str | None, word: str, path: Path) -> str:
    found = [key for key, array in arrays.items() if array.ndim == axes]
    if said is not None:
        if said not in found:
            raise ConfigError(f"{path}#{word}={said}: of {axes} axes and that size it has {', '.join(found) or 'none'}")
        return said
    if len(found) != 1:
        holds = ", ".join(f"{key} {array.shape}" for key, array in arrays.items()) or "nothing"
        what = "several arrays" if found else "no array"
        cure = f": choose one of {', '.join(found)} with #{word}=KEY" if found else "; #gt=FILE names a second file"
        raise DataError(f"{path} has {what} that may be the {word}{cure if found else ''} (it holds {holds})"
                        f"{'' if found else cure}")  # fmt: skip
    return found[0]


def _channels_first(cube: NDArray[Any], size: tuple[int, ...], path: Path, key: str) -> NDArray[Any]:
    first, last = cube.shape[1:] == size, cube.shape[:2] == size
    if first and last:
        raise DataError(f"{path}: {key!r} of shape {cube.shape} can be read with its bands first or last; crop it")
    return cube if first else np.ascontiguousarray(cube.transpose(2, 0, 1))


def _valid(plane: NDArray[Any]) -> NDArray[np.bool_]:
    if plane.dtype.kind == "f":
        return np.asarray(np.isfinite(plane))
    return np.asarray(plane != NO_DATA) if plane.dtype.kind == "i" else np.ones(plane.shape, bool)


def _figures(arrays: Arrays, keys: dict[str, float], count: int, path: Path) -> NDArray[np.float64] | None:
    """Wavelengths or widths in micrometres, (C,)."""
    found = [(key, factor) for key, factor in keys.items() if key in arrays]
    if not found:
        return None
    key, factor = found[0]
    values = np.asarray(arrays[key]).ravel()
    if len(values) != count or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: {key!r} has {len(values)} values of {values.dtype} for {count} bands")
    return values.astype(np.float64) * factor


def _sensor(path: Path, cube: str, count: int, arrays: Arrays, said: str | None) -> tuple[Sensor, list[str]]:
    """Whose bands these are: as said, by the file's wavelengths, or by its name."""
    if said is not None:
        return sensors.get(said), []
    centres = _figures(arrays, WAVELENGTHS, count, path)
    if centres is not None:
        for name, sensor in sensors.catalogue().items():
            known = [band.wavelength_um or 0.0 for band in sensor.bands]
            if len(known) == count and np.abs(np.array(known) - centres).max() < SAME_UM:
                return sensor, [f"its wavelengths are those of {name}"]
        widths = _figures(arrays, FWHM, count, path)
        bands = tuple(
            Band(f"B{i + 1:03d}", float(centre), None if widths is None else float(widths[i]))
            for i, centre in enumerate(centres)
        )
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.stem.lower()).lstrip("-_") or "scene"
        return Sensor(name, bands, 30.0), ["no sensor of the catalogue: counts as they are, taken as of 30 m"]
    pines = sensors.get("aviris-indian-pines")
    told = f"{path.stem} {cube}".lower().replace("-", "_").replace(" ", "_")
    if "indian_pines" in told and count == len(pines.bands):
        return pines, []
    raise DataError(
        f"{path}: nobody says which {count} bands {cube!r} has: add #sensor=NAME of the catalogue (dofa sensors) or "
        "#sensor=FILE.yaml, or a wavelength_nm array to the file"
    )


def _rows(path: Path, sensor: Sensor, count: int, arrays: Arrays) -> list[int]:
    """The row of the cube of each band of the sensor."""
    centres = _figures(arrays, WAVELENGTHS, count, path)
    if centres is None:
        if len(sensor.bands) != count:
            raise ConfigError(f"{path} has {count} bands and sensor {sensor.name} {len(sensor.bands)}: name another")
        return list(range(count))
    rows = []
    for band in sensor.bands:
        away = np.abs(centres - (band.wavelength_um or 0.0))
        if away.min() > NEAR_UM:
            raise ConfigError(f"{path} has no band at {band.wavelength_um} µm, which is {band.name} of {sensor.name}")
        rows.append(int(away.argmin()))
    if len(set(rows)) < len(rows):
        raise ConfigError(f"{path}: two bands of sensor {sensor.name} are one band of the file: name another sensor")
    return rows


def _classes(
    path: Path, truth: NDArray[Any], arrays: Arrays, sensor: str, notes: list[str]
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of the classes that have pixels, and the class of each label; tells what is left out."""
    top = int(truth.max())
    if "classes" in arrays and arrays["classes"].dtype.kind in "US":
        known = [str(name) for name in arrays["classes"].ravel()]
    elif sensor == "aviris-indian-pines" and top <= len(INDIAN_PINES):
        known = ["unlabelled", *INDIAN_PINES]
    else:
        known = ["unlabelled", *(f"class {label}" for label in range(1, top + 1))]
    if len(known) <= top:
        raise DataError(f"{path}: its labels go to {top}, its classes name only 0 to {len(known) - 1}")
    there = [label for label in np.unique(truth).tolist() if label > 0]
    if len(there) < 2:
        raise DataError(f"{path}: its labels hold {len(there)} classes; a task needs two")
    absent = [known[label] for label in range(1, len(known)) if label not in there]
    if absent:
        notes.append(f"no pixel of {', '.join(absent)}: left out")
    return tuple(known[label] for label in there), {label: i for i, label in enumerate(there)}
