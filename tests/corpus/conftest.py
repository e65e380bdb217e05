"""Small corpora in memory and on disk, and real HTTP servers to read them from."""

import functools
import http.server
import runpy
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from dofa.corpus.items import Item, Reading, Sample
from dofa.pixels import Scaling
from dofa.sensors import Band, Sensor


def make_sensor(bands: int = 3, name: str = "toy", scale: float = 0.01) -> Sensor:
    names = [f"B{i}" for i in range(1, bands + 1)]
    return Sensor(
        name,
        tuple(Band(n, 0.4 + 0.01 * i) for i, n in enumerate(names)),
        gsd_m=10,
        scaling=Scaling.uniform("reflectance", names, scale=scale),
    )


def make_images(count: int, bands: int = 3, side: int = 16, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    """Images with contrast between them, within them and between bands."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(50, 200, (count, bands, 1, 1))
    return (level + rng.uniform(0, 50, (count, bands, side, side))).astype(dtype)


def make_reading(count: int = 12, places: int = 4, side: int = 16, dtype: str = "uint16", **more) -> Reading:
    images = make_images(count, side=side, dtype=dtype)
    return Reading.from_arrays(make_sensor(), images, [f"place {i % places}" for i in range(count)], **more)


def with_items(reading: Reading, items: list[Item]) -> Reading:
    return Reading(reading.sensor, items, reading.tile, reading.dtype)


def item(number: int, image: np.ndarray, valid: np.ndarray | None = None, place: str | None = None) -> Item:
    return Item(f"image {number}", place or f"place {number}", lambda: Sample(image, valid))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def as_version_1(folder: Path, name: str = "toy") -> None:
    """Make of a store what dofa wrote before chunks had checksums and attributes a seal."""
    for path in ("", name):
        group = zarr.open_group(folder / path, mode="r+")
        attributes = {k: v for k, v in group.attrs.asdict().items() if k not in ("sha256", "columns", "state")}
        group.attrs.put({**attributes, "format_version": 1})
    for array in (folder / name / "images", folder / name / "valid"):
        if array.exists():
            before = zarr.open_array(array, mode="r")
            layout = {"chunks": before.chunks, "shards": before.shards, "fill_value": before.fill_value}
            pixels = before[:]
            shutil.rmtree(array)
            codec = zarr.codecs.BloscCodec(shuffle="shuffle")
            zarr.create_array(array, data=pixels, compressors=codec, **layout)


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """Makers of small corpora, which test modules cannot import from here."""
    return SimpleNamespace(
        sensor=make_sensor,
        images=make_images,
        reading=make_reading,
        with_items=with_items,
        item=item,
        tree=tree,
        as_version_1=as_version_1,
    )


@pytest.fixture(scope="session")
def layouts() -> SimpleNamespace:
    """Writers of small published corpora in their true layouts (layouts.py)."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("layouts.py"))))


class Recorder(http.server.SimpleHTTPRequestHandler):
    """Serves files, with byte ranges unless told not to; refuses to list folders."""

    ranges = True
    sent: list[tuple[str, int]]

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            end = int(last) + 1 if first and last else len(data)
            body = data[start:end]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        else:
            body = data
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.sent.append((self.path, len(body)))
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


class Server:
    """A local HTTP server over a folder that counts what it sends."""

    def __init__(self, folder: Path, ranges: bool) -> None:
        self.sent: list[tuple[str, int]] = []
        handler = type("Handler", (Recorder,), {"ranges": ranges, "sent": self.sent})
        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bytes_sent(self, part: str) -> int:
        return sum(size for path, size in self.sent if part in path)


@pytest.fixture
def serve() -> Iterator:
    """Start servers of folders; they end with the test."""
    servers: list[Server] = []

    def start(folder: Path, ranges: bool = True) -> Server:
        servers.append(Server(folder, ranges))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()
