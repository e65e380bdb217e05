"""MATLAB files, read in a process of their own: a damaged one can end SciPy or HDF5, and with it whoever called them.

The process that reads runs this file alone, under limits of memory and time, and leaves arrays of plain numbers and
text behind as .npy. Nothing of dofa is imported there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = "names.json"  # of the arrays, in the order of 0.npy, 1.npy, …
PLAIN = "biufcUS"  # kinds of dtype without objects
SECONDS, BYTES_A_SECOND = 60.0, 2e6  # that reading may take
MEMORY, GROWTH = 2**32, 24  # bytes, and how many times its size a compressed file may need


def load_mat(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a .mat file of any version, by name; structures and cells are left out.

    Raises:
        OSError: it cannot be read, with the reason: damaged, too large once unpacked, or slow without end.
        ModuleNotFoundError: SciPy or h5py is not installed.
    """
    size = path.stat().st_size
    with TemporaryDirectory(prefix="dofa-mat-") as folder:
        command = [sys.executable, "-P", __file__, str(path.absolute()), folder, str(MEMORY + GROWTH * size)]
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS + size / BYTES_A_SECOND,
                env={**os.environ, **one},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise OSError("reading it takes for ever") from None
        names = Path(folder) / NAMES
        if done.returncode or not names.is_file():
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise OSError(f"its reader ended with {how}")
        told = json.loads(names.read_text(encoding="utf-8"))
        if "missing" in told:
            raise ModuleNotFoundError(f"no module named {told['missing']}", name=told["missing"])
        if "error" in told:
            raise OSError(told["error"])
        return {key: np.load(Path(folder) / f"{n}.npy", allow_pickle=False) for n, key in enumerate(told["arrays"])}


def _read(path: str) -> dict[str, NDArray[Any]]:
    with open(path, "rb") as file:
        head = file.read(128)
    if b"MATLAB 7.3" in head:
        import h5py

        with h5py.File(path, "r") as opened:  # MATLAB counts the first axis first, HDF5 the last
            own = [key for key in opened if isinstance(opened.get(key, getlink=True), h5py.HardLink)]
            arrays = {key: opened[key] for key in own if isinstance(opened[key], h5py.Dataset)}
            # Values that a data set keeps in another file are nobody's scene.
            kept = {key: a for key, a in arrays.items() if a.external is None and not a.is_virtual}
            return {key: np.asarray(array).T for key, array in kept.items()}
    from scipy.io import loadmat

    return {key: value for key, value in loadmat(path).items() if isinstance(value, np.ndarray)}


def _main(path: str, folder: str, memory: str) -> None:
    told: dict[str, Any]
    try:
        import resource

        import scipy.io  # noqa: F401  # before the limit: libraries map more memory than they use

        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    except (ImportError, ValueError, OSError):
        pass  # Windows has no such limit, and a library that is missing is told below
    try:
        arrays = {key: value for key, value in _read(path).items() if value.dtype.kind in PLAIN}
        for number, array in enumerate(arrays.values()):
            np.save(Path(folder) / f"{number}.npy", array, allow_pickle=False)
        told = {"arrays": list(arrays)}
    except ModuleNotFoundError as error:
        told = {"missing": error.name}
    # The end of a child process that only reads one file: whatever scipy's parser stumbles over is its result, and the
    # parent is told so.
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}"[:300]}
    (Path(folder) / NAMES).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
