"""Reading the pickles of GEO-Bench without running anything that they name.

A pickle names classes and functions by module and calls them. Here each name that GEO-Bench v1 uses stands for a record
that holds what it was given and does nothing; any other name is refused.
"""

import io
import pickle
import struct
from typing import Any, ClassVar

import numpy as np

from dofa.errors import DataError, shorten

GEOBENCH = {
    "geobench.dataset": (
        "Band", "SpectralBand", "Sentinel1", "Sentinel2", "Landsat8", "ElevationBand", "HyperSpectralBands",
        "MultiBand", "CloudProbability", "Mask", "SegmentationClasses",
    ),
    "geobench.label": ("LabelType", "Classification", "MultiLabelClassification", "SemanticSegmentation"),
    "geobench.task": ("TaskSpecifications", "Accuracy", "MultilabelAccuracy", "SegmentationAccuracy"),
    "affine": ("Affine",),
    "rasterio.crs": ("CRS",),
    "datetime": ("date",),
}  # fmt: skip
NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}  # no objects, no records
LIMIT = 1 << 22  # bytes; task_specs.pkl has about 1.5 kB, a sample's pickle 2 kB


class ForeignNameError(DataError):
    """A pickle that names something no GEO-Bench file needs: never skipped over, whatever else is."""


class Inert:
    """Stands for an object of a class that is not imported: its arguments and its state, nothing else."""

    fields: dict[str, Any]

    def __new__(cls, *arguments: Any) -> "Inert":
        """Keep what a class was called with."""
        made = super().__new__(cls)
        made.fields = {"arguments": arguments} if arguments else {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.fields.update(state if isinstance(state, dict) else {"state": state})


class _DType:
    """A NumPy dtype as its code and byte order, of plain numbers only."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in NUMBERS:
            raise ValueError(f"numbers of type {code!r}")
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        self.order = str(order)

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class InertArray:
    """Stands for a NumPy array of one axis: its numbers."""

    values: list[Any]

    def __init__(self, *_: Any) -> None:
        self.values = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        if len(shape) != 1:
            raise ValueError(f"an array of shape {shape}")
        self.values = np.frombuffer(bytes(data), dtype.numpy, count=int(shape[0])).tolist()


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(bytes(data), dtype.numpy, count=1)[0].item()


def _reconstruct(kind: Any, *_: Any) -> InertArray:
    return InertArray()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    **{(module, name): type(name, (Inert,), {}) for module, names in GEOBENCH.items() for name in names},
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): InertArray,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.multiarray", name): stand_in
        for core in ("core", "_core")
        for name, stand_in in (("scalar", _scalar), ("_reconstruct", _reconstruct))
    },
}


# The unpickler written in Python: the one in C obeys a memo index of 2³² by taking as much memory.
class _Unpickler(pickle._Unpickler):
    what = ""
    stack: list[Any]

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Inert | InertArray | _DType):
            raise ValueError(f"a state for {type(made).__name__}")
        made.__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise ForeignNameError(
                f"{self.what} names {shorten(module)}.{shorten(name)}, which no GEO-Bench file needs: it is refused, "
                "nothing of it was run; get the file from the source named in docs/datasets.md"
            ) from None


def read_inert_pickle(data: bytes, what: str) -> Any:
    """What a pickle holds: plain values, `Inert` records for GEO-Bench's objects, `InertArray` for arrays.

    Raises:
        ForeignNameError: it names anything but the classes that GEO-Bench v1 writes.
        DataError: it is too large, damaged, or not of a known form.
    """
    if len(data) > LIMIT:
        raise DataError(f"{what} has {len(data)} bytes: GEO-Bench's pickles have a few thousand")
    unpickler = _Unpickler(io.BytesIO(data))
    unpickler.what = what
    try:
        return unpickler.load()
    except DataError:
        raise
    # Damaged pickles fail in as many ways as there are instructions.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, RecursionError,
            MemoryError, OverflowError, AssertionError, struct.error) as error:  # fmt: skip
        told = shorten(str(error), 200)
        raise DataError(f"{what} is no pickle that GEO-Bench writes ({type(error).__name__}: {told})") from None
