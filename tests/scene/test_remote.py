"""Files and STAC items over a real web server that is busy, stands still, hangs up and cuts answers off."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dofa import sensors
from dofa.errors import DataError

rasterio = pytest.importorskip("rasterio")

from rasterio.shutil import copy as copy_raster  # noqa: E402

from dofa.raster import (  # noqa: E402
    gdal,
    open_known,
    open_raster,
    remote,
)
from dofa.scene.grid import Window  # noqa: E402
from dofa.scene.scene import open_scene  # noqa: E402
from dofa.scene.stac import read_item  # noqa: E402

from .conftest import write_tiff  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of affine 3, inside rasterio
NAMES = ["B02", "B03", "B04"]
FAULTS = [503, "truncate", "reset", "stall"]


class Server:
    """The process and what it is told; each test has a folder of its own in it."""

    def __init__(self, root: Path, url: str, folder: Path):
        self.folder, self._url, self._root = folder, url, root

    def url(self, path: Path) -> str:
        return f"{self._url}/{path.relative_to(self._root)}"

    def misbehave(self, *rules):
        urllib.request.urlopen(urllib.request.Request(self._url, json.dumps(rules).encode(), method="POST")).close()

    def log(self):
        with urllib.request.urlopen(f"{self._url}/-/log") as answer:
            return json.load(answer)

    def faults(self):
        return sum(entry["fault"] is not None for entry in self.log())


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    # A process of its own: rasterio holds Python's lock while it opens a file, and no thread could answer.
    script = Path(__file__).parents[1] / "flaky_server.py"
    with subprocess.Popen([sys.executable, str(script), str(root)], stdout=subprocess.PIPE, text=True) as running:
        yield root, f"http://127.0.0.1:{running.stdout.readline().strip()}"
        running.terminate()


@pytest.fixture
def server(process, monkeypatch, request):
    root, url = process
    folder = root / f"{abs(hash(request.node.name))}"
    folder.mkdir()
    monkeypatch.setattr(remote, "WAITS_S", (0.02, 0.05))
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.7)
    quick = {"GDAL_HTTP_RETRY_DELAY": "0.02", "GDAL_HTTP_MAX_RETRY": "1", "GDAL_HTTP_LOW_SPEED_TIME": "1"}
    for key, value in quick.items():
        monkeypatch.setitem(gdal.OPTIONS, key, value)
    one = Server(root, url, folder)
    one.misbehave()
    return one


def image(seed=0, bands=3, side=600):
    return np.random.default_rng(seed).integers(200, 4000, (bands, side, side)).astype("uint16")


def make_cog(path: Path, array) -> Path:
    plain = write_tiff(path.with_suffix(".plain.tif"), array, names=NAMES)
    copy_raster(plain, path, driver="COG", blocksize=128, compress="deflate")
    return path


def unseen(path):
    """Opened by its header alone, so that no pixel was asked for."""
    sensor = sensors.get("sentinel-2-l2a").select(NAMES)
    return open_known(path, sensor, sensor.scaling, (1, 2, 3))


# -- images -----------------------------------------------------------------------------------------------------------


def test_a_cog_over_http_equals_the_local_file_and_takes_few_requests(server):
    path = make_cog(server.folder / "x.tif", image())
    with open_raster(path, "sentinel-2-l2a") as local, open_raster(server.url(path), "sentinel-2-l2a") as r:
        assert (r.crs, r.transform, r.sensor, r.scaling, r.nodata) == (
            local.crs, local.transform, local.sensor, local.scaling, local.nodata
        )  # fmt: skip
        assert np.array_equal(r.read()[0], local.read()[0])
        window = ((77, 460), (5, 130))
        assert np.array_equal(r.read(window, ["B04"])[0], local.read(window, ["B04"])[0])
    asked = server.log()
    assert {entry["path"] for entry in asked} == {"/" + server.url(path).split("/", 3)[3]}  # no side files
    assert len(asked) < 30
    with open_scene(server.url(path), "sentinel-2-l2a") as scene, open_scene(path, "sentinel-2-l2a") as same:
        there, valid = scene.read(Window(-3, 400, 250, 250))
        here, also = same.read(Window(-3, 400, 250, 250))
        assert np.array_equal(there, here)
        assert np.array_equal(valid, also)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("skip", [0, 2, 5])
def test_an_answer_that_is_lost_twice_is_asked_for_again(server, fault, skip):
    path = make_cog(server.folder / "x.tif", image(skip))
    server.misbehave({"path": r"x\.tif$", "fault": fault, "skip": skip, "times": 2})
    with open_raster(server.url(path), "sentinel-2-l2a", dn_offset=0) as r:
        assert np.array_equal(r.read()[0], image(skip))
    assert server.faults() >= 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_never_answers_is_one_clear_line_with_address_and_reason(server, fault):
    path = make_cog(server.folder / "x.tif", image())
    reason = {503: "503", "truncate": "x.tif|bytes", "reset": "Empty reply|reset", "stall": "slow|timed out"}[fault]
    server.misbehave({"path": r"x\.tif$", "fault": fault})
    began = time.monotonic()
    with pytest.raises(DataError, match=reason) as caught:
        open_raster(server.url(path), "sentinel-2-l2a").close()
    assert "\n" not in str(caught.value)
    assert server.url(path) in str(caught.value)
    assert time.monotonic() - began < 12
    assert server.faults() >= 3


@pytest.mark.parametrize("fault", [503, "truncate", "reset"])
def test_pixels_that_never_come_are_one_clear_line_and_come_when_the_server_recovers(server, fault):
    path = make_cog(server.folder / "x.tif", image())
    with unseen(server.url(path)) as r:
        server.misbehave({"path": r"x\.tif$", "fault": fault, "method": "GET"})
        with pytest.raises(DataError, match=r"cannot be (opened|decoded): ") as caught:
            r.read()
        assert server.url(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        server.misbehave()
        assert np.array_equal(r.read()[0], image())


def test_a_file_that_is_not_there_is_asked_for_once(server):
    began = time.monotonic()
    with pytest.raises(DataError, match=r"gone.tif cannot be opened: HTTP response code: 404"):
        open_raster(server.url(server.folder / "gone.tif"))
    assert time.monotonic() - began < 1
    assert len(server.log()) == 2  # GDAL looks twice


def test_tiles_that_are_cut_off_are_never_zeros_also_where_gdal_is_told_to_use_threads(server, monkeypatch):
    """With GDAL_NUM_THREADS GDAL 3.10 fills uncompressed tiles that did not come with zeros, without an error."""
    monkeypatch.setenv("GDAL_NUM_THREADS", "4")
    path = write_tiff(
        server.folder / "x.tif", image(side=1024), names=NAMES, tiled=True, blockxsize=256, blockysize=256
    )
    with unseen(server.url(path)) as r:
        server.misbehave({"path": r"x\.tif$", "range": r"-\d{6,}$", "fault": "truncate", "times": 8})
        assert np.array_equal(r.read(((0, 1024), (0, 300)))[0], image(side=1024)[:, :, :300])
    assert server.faults() == 8


def test_a_virtual_file_of_addresses_is_asked_for_again_too(server, tmp_path):
    path = make_cog(server.folder / "x.tif", image())
    band = "<SimpleSource><SourceFilename>/vsicurl/{}</SourceFilename><SourceBand>{}</SourceBand></SimpleSource>"
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}">{band.format(server.url(path), i)}</VRTRasterBand>'
        for i in (1, 2, 3)
    )
    vrt = tmp_path / "x.vrt"
    vrt.write_text(f'<VRTDataset rasterXSize="600" rasterYSize="600">{bands}</VRTDataset>')
    with unseen(vrt) as r:
        server.misbehave({"path": r"x\.tif$", "range": r"-\d{6,}$", "fault": "truncate", "times": 2})
        assert np.array_equal(r.read()[0], image())
        assert server.faults() == 2


def test_threads_get_their_own_pixels_from_a_server_that_loses_every_fifth_answer(server):
    path = make_cog(server.folder / "x.tif", image())
    rules = [{"path": r"x\.tif$", "fault": f, "skip": 12 + 7 * i, "times": 1} for i, f in enumerate(FAULTS[:3] * 4)]
    with unseen(server.url(path)) as r, ThreadPoolExecutor(4) as pool:
        server.misbehave(*rules)
        corners = [(i % 5 * 100, i // 5 * 100) for i in range(25)]
        parts = list(pool.map(lambda c: r.read(((c[0], c[0] + 100), (c[1], c[1] + 100)))[0], corners))
    for (row, col), part in zip(corners, parts, strict=True):
        assert np.array_equal(part, image()[:, row : row + 100, col : col + 100])
    assert server.faults() > 3


def test_signatures_and_passwords_are_not_shown(server):
    url = server.url(server.folder / "gone.tif").replace("http://", "http://me:secret@") + "?sig=hidden"
    with pytest.raises(DataError, match=r"gone.tif\?… cannot be opened: .*404") as caught:
        open_raster(url)
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_environment_sets_gdals_patience_but_not_what_keeps_pixels_right():
    code = "from dofa.raster.gdal import OPTIONS as o; print(o['GDAL_HTTP_MAX_RETRY'], o['GDAL_NUM_THREADS'])"
    told = {**os.environ, "GDAL_HTTP_MAX_RETRY": "9", "GDAL_NUM_THREADS": "8"}
    answer = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["9", "1"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("https://a.b/c.tif?x=1", "/vsicurl/https://a.b/c.tif?x=1"),
        ("s3://bucket/c.tif", "/vsis3/bucket/c.tif"),
        ("gs://bucket/c.tif", "/vsigs/bucket/c.tif"),
        ("/vsicurl/https://a.b/c.tif", "/vsicurl/https://a.b/c.tif"),
        ("zip://x.zip!c.tif", "zip://x.zip!c.tif"),
        ("here/c.tif", "here/c.tif"),
    ],
)
def test_addresses_become_gdals_names(given, name):
    assert remote.gdal_name(given) == name


def test_a_bucket_without_credentials_says_how_to_go_without(monkeypatch, tmp_path):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CPL_AWS_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"s3://bucket/x.tif cannot be opened: set AWS_NO_SIGN_REQUEST=YES"):
        open_raster("s3://bucket/x.tif")


# -- items ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def item(server):
    """An item of three bands, its files named by relative paths; gives its path."""
    array = image(5, side=200)
    assets = {}
    for i, name in enumerate(NAMES):
        write_tiff(server.folder / f"{name}.tif", array[i : i + 1], nodata=0)
        band = {"name": name, "data_type": "uint16", "raster:scale": 1e-4}
        assets[name] = {"href": f"./{name}.tif", "type": "image/tiff; application=geotiff", "bands": [band]}
    properties = {"platform": "sentinel-2a", "s2:processing_baseline": "02.14"}
    path = server.folder / "item.json"
    path.write_text(
        json.dumps(
            {"type": "Feature", "stac_version": "1.1.0", "id": "S2A", "collection": "sentinel-2-l2a",
             "properties": properties, "assets": assets}
        )
    )  # fmt: skip
    return path


def test_an_item_over_http_is_the_scene_of_the_local_item(server, item):
    with open_scene(item) as local, open_scene(server.url(item)) as scene:
        assert scene.parts[0].files[0].href == server.url(server.folder / "B02.tif")
        assert scene.parts[0].sensor == local.parts[0].sensor
        assert scene.parts[0].scaling == local.parts[0].scaling
        window = Window(50, 60, 100, 140)
        assert np.array_equal(scene.read_physical(window)[0], local.read_physical(window)[0])
        assert scene.read_physical(window)[0] == pytest.approx(image(5, side=200)[:, 50:150, 60:200] * 1e-4)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_item_that_is_lost_twice_is_asked_for_again_and_thrice_is_an_error(server, item, fault):
    server.misbehave({"path": r"item\.json$", "fault": fault, "times": 2})
    assert read_item(server.url(item)).name == "S2A"
    assert server.faults() == 2
    reason = {
        503: "HTTP 503",
        "truncate": r"the server sent \d+ of \d+ bytes",
        "reset": "reset|closed",
        "stall": "timed",
    }
    server.misbehave({"path": r"item\.json$", "fault": fault})
    with pytest.raises(DataError, match=f"item.json cannot be fetched: .*({reason[fault]})") as caught:
        read_item(server.url(item))
    assert server.url(item) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.faults() == 3


def test_an_item_that_is_not_there_is_asked_for_once(server):
    with pytest.raises(DataError, match=r"none.json cannot be fetched: HTTP 404"):
        read_item(server.url(server.folder / "none.json"))
    assert len(server.log()) == 1
    with pytest.raises(DataError, match=r"s3://bucket/item.json: documents are fetched from http.*download it"):
        read_item("s3://bucket/item.json")


@pytest.mark.parametrize("href", ["file:///etc/passwd.tif", "ftp://host/x.tif", "vrt://x.tif"])
def test_an_item_from_the_network_names_no_local_files(server, item, href):
    data = json.loads(item.read_text())
    data["assets"]["B03"]["href"] = href
    item.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"S2A: asset .* is no address"):
        read_item(server.url(item))
    data["assets"]["B03"]["href"] = "/etc/x.tif"  # of the server
    item.write_text(json.dumps(data))
    file = read_item(server.url(item)).part.files[1].href
    assert file == server.url(server.folder).split("/", 3)[0] + "//" + server.url(item).split("/")[2] + "/etc/x.tif"


def test_a_server_tells_versions_of_a_file_apart(server):
    path = write_tiff(server.folder / "x.tif", image(), names=NAMES)
    before = remote.version(server.url(path))
    with open_scene(server.url(path), "sentinel-2-l2a", dn_offset=0) as scene:
        first = scene.fingerprint
    with open_scene(server.url(path), "sentinel-2-l2a", dn_offset=0) as scene:
        assert scene.fingerprint == first
    write_tiff(path, image(side=610), names=NAMES)
    assert before != remote.version(server.url(path))
    with open_scene(server.url(path), "sentinel-2-l2a", dn_offset=0) as scene:
        assert scene.fingerprint != first
    assert remote.version(server.url(server.folder / "none.tif")) is None
    assert remote.version("/vsis3/bucket/x.tif") is None
