"""What outputs ask of the disk: what is free, and certainty afterwards."""

import os
import shutil
import sys
from pathlib import Path


def remove(path: Path) -> None:
    """A file or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file's or a folder's content to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """What may still be written."""
    return shutil.disk_usage(folder).free


def in_words(count: float) -> str:
    """A number of bytes, to be read."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def reason(error: BaseException) -> str:
    """Why a library could not read or write, on one line; rasterio hides GDAL's words behind a general sentence."""
    said = error.strerror if isinstance(error, OSError) else None
    return " ".join((said or str(error.__cause__ or error)).split())
