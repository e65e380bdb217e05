"""Files that are there whole or not at all."""

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(file: Path, data: bytes) -> None:
    """All of it or nothing: written beside, flushed to the disk, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{uuid4().hex}.tmp")
    try:
        with beside.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
