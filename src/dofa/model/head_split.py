"""Which images a head was trained, validated and tested on: a digest of each image's pixels beside the head.

Scoring a head on images it learned from says nothing about others. The digests recognise these images under another
path, in another order, in a subset of the data set or among new ones.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dofa.addresses import redact_values
from dofa.documents import parse_json
from dofa.errors import CheckpointError
from dofa.settings import check_version

FILE = "split.safetensors"
FORMAT_VERSION = 1
Role = Literal["train", "val", "test", "unused"]
ROLES: tuple[Role, ...] = ("train", "val", "test", "unused")
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """The images of a data set by the digests of their pixels, and what each was used for.

    Attributes:
        digests: (n,) uint64, ascending, each once.
        roles: (n,) uint8, place in ROLES: the weights were fitted on train, an epoch or a setting was chosen by val,
            test was scored, unused was left out.
        seed: of the split, None where it was published.
        block_side: a single image was cut into blocks of about so many pixels, 0 for the default; None where images
            are whole.
        windows: (m,) uint64, ascending: hashes of some small windows of the train and val images, which recognise the
            same pixels in other cuts; see `dofa.datasets.fingerprints`.
        rate: one of so many windows was kept.
    """

    digests: NDArray[np.uint64] = field(repr=False)
    roles: NDArray[np.uint8] = field(repr=False)
    seed: int | None = None
    block_side: int | None = None
    windows: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    rate: int = 1

    @classmethod
    def of(
        cls,
        digests: NDArray[np.uint64],
        roles: NDArray[np.uint8],
        seed: int | None = None,
        block_side: int | None = None,
    ) -> "SplitRecord":
        """A record of images in any order; of equal images the use that taught the head most counts.

        Args:
            digests: (n,) uint64.
            roles: (n,) places in ROLES.
            block_side: of blocks of a single image.
        """
        order = np.lexsort((roles, digests))
        unique, first = np.unique(digests[order], return_index=True)
        return cls(unique, roles[order][first].astype(np.uint8), seed, block_side)

    def roles_of(self, digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What images were used for.

        Args:
            digests: (m,) uint64.

        Returns:
            (m,) places in ROLES, UNKNOWN for images that are not in the record.
        """
        if not len(self.digests):
            return np.full(len(digests), UNKNOWN, np.int64)
        at = np.searchsorted(self.digests, digests).clip(max=len(self.digests) - 1)
        return np.where(self.digests[at] == digests, self.roles[at].astype(np.int64), UNKNOWN)

    def to_bytes(self, weights_sha256: str) -> bytes:
        """The file.

        Args:
            weights_sha256: of the head it belongs to.
        """
        told: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "head": weights_sha256,
            "seed": self.seed,
            "block_side": self.block_side,
            "rate": self.rate,
        }
        arrays: dict[str, NDArray[Any]] = {"digests": self.digests, "roles": self.roles, "windows": self.windows}
        return save(arrays, {"split": json.dumps(redact_values(told))})


def read_split(path: Path, weights_sha256: str) -> SplitRecord | None:
    """The record beside a head.

    Args:
        weights_sha256: of the head it has to belong to.

    Returns:
        None where there is no file: heads of earlier versions have none.

    Raises:
        CheckpointError: a damaged file, one of a newer dofa, or that of another head.
    """
    if not path.is_file():
        return None
    cure = "copy or train the head again"
    try:
        with safe_open(path, "numpy") as file:
            told = parse_json((file.metadata() or {})["split"], str(path), CheckpointError)
            keys = ("format_version", "head", "seed", "block_side", "rate")
            version, head, seed, side, rate = (told[key] for key in keys)
            check_version(version, FORMAT_VERSION, str(path), CheckpointError)
            digests, roles, windows = (file.get_tensor(name) for name in ("digests", "roles", "windows"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {cure}") from None
    if head != weights_sha256:
        raise CheckpointError(f"{path} belongs to another head: {cure}")
    ascending = all(a.dtype == np.uint64 and a.ndim == 1 and (a[1:] > a[:-1]).all() for a in (digests, windows))
    fits = roles.dtype == np.uint8 and roles.shape == digests.shape and bool((roles < len(ROLES)).all())
    plain = isinstance(seed, int | None) and isinstance(side, int | None) and isinstance(rate, int)
    if not (ascending and fits and plain and 0 < rate < 2**60 and rate & (rate - 1) == 0):
        raise CheckpointError(f"{path} is damaged: {cure}")
    return SplitRecord(digests, roles, seed, side, windows, rate)
