"""A teacher's features of a fixed set of crops, computed once and kept on disk beside the run."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from dofa.documents import read_bytes
from dofa.errors import CheckpointError
from dofa.io import allocate, name_os_errors, write_atomically
from dofa.train.data import MicroBatches, Source

Answers = NDArray[np.float16]
BATCH = 32  # crops the teacher is shown at a time


def cached_teacher_features(
    folder: Path,
    data: MicroBatches,
    teach: Callable[[Tensor, int], Tensor],
    key: dict[str, object],
    fabric: Fabric,
    say: Callable[[str], None],
) -> dict[str, Answers]:
    """What the teacher says of every fixed crop (`distill.crops`) of every sensor; read where it is there already.

    Args:
        folder: of the run's answers; one file a sensor, mapped into memory, and what it was made with beside it.
        teach: pictures (B, R, 3, h, w) and the side of the student's grid to features (B, blocks, T, D).
        key: whatever the answers depend on, as JSON values: other values make them anew.
        fabric: one process computes, the others wait.
        say: told what is done.

    Returns:
        (images, crops, blocks, T, D) float16 for each sensor, images in the order of the training split.
    """
    crops, writes = data.config.distill.crops, fabric.is_global_zero
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    for name, source in data.sources.items():
        seen = {"grid": source.side // data.patch, "scaling": source.scaling.to_dict(), "view": repr(source.view)}
        mark = json.dumps({**key, "sensor": name, **seen}, sort_keys=True)
        file, note = folder / f"{name}.npy", folder / f"{name}.json"
        there = writes and file.is_file() and note.is_file() and read_bytes(note, CheckpointError) == mark.encode()
        if fabric.broadcast(there):
            continue
        if writes:
            note.unlink(missing_ok=True)
        say(f"  {name}: the teacher looks at {len(source.train)} × {crops} crops, once")
        _make(file, data, source, teach, fabric)
        if writes:
            write_atomically(note, mark.encode())
    fabric.barrier()
    return {name: _load(folder / f"{name}.npy", len(source.train), crops) for name, source in data.sources.items()}


def _load(file: Path, images: int, crops: int) -> Answers:
    """One sensor's answers, mapped into memory.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        found: Answers = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{file} is damaged ({error}): delete {file.parent} and run it again") from None
    if found.dtype != np.float16 or found.ndim != 5 or found.shape[:2] != (images, crops):
        raise CheckpointError(f"{file} does not hold the teacher's answers: delete {file.parent} and run it again")
    return found


def _make(
    file: Path, data: MicroBatches, source: Source, teach: Callable[[Tensor, int], Tensor], fabric: Fabric
) -> None:
    """Write one sensor's answers on one process; all others keep step with it.

    They may take hours, and a process that hears nothing for ten minutes (NCCL) or thirty (gloo) takes the others for
    dead: so all meet after every batch.
    """
    crops, grid = data.config.distill.crops, source.side // data.patch
    partial = file.with_suffix(".partial")
    rows: Answers | None = None
    total = len(source.train) * crops
    for first in range(0, total, BATCH):
        if fabric.is_global_zero:
            pictures = _pictures(data, source, range(first, min(first + BATCH, total)))
            found = teach(fabric.to_device(pictures), grid).cpu().to(torch.float16).numpy()
            if rows is None:
                shape = (len(source.train), crops, *found.shape[1:])
                rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
                with (
                    name_os_errors(partial),
                    partial.open("r+b") as made,
                ):  # a full disk ends a process that writes to a map
                    allocate(made.fileno(), os.fstat(made.fileno()).st_size)
            rows.reshape(-1, *found.shape[1:])[first : first + len(found)] = found
        fabric.barrier()
    if isinstance(rows, np.memmap):
        rows.flush()
        os.replace(partial, file)


def _pictures(data: MicroBatches, source: Source, numbers: range) -> Tensor:
    """What the teacher is shown of some crops, numbered in the order of images and crops."""
    view = source.view
    assert view is not None  # there is a teacher
    bands = np.arange(source.shape[0])
    shown = []
    for number in numbers:
        image, valid = data.fixed_crop(source, *divmod(number, data.config.distill.crops), bands)
        shown.append(view.show(image, source.scaling, valid))
    return torch.from_numpy(np.stack(shown))
