"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path
from uuid import uuid4


def write_atomically(file: Path, data: bytes) -> None:
    """All of it or nothing: written beside, flushed to the disk, then renamed.

    Args:
        file: to write; its folder is made.
        data: all of it.

    Raises:
        OSError: the disk refuses it; the file is named.
    """
    beside = file.with_name(f".{uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("xb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            beside.unlink(missing_ok=True)
