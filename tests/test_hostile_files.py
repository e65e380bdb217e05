"""Damaged and hostile files: each is read rightly or refused in one line, soon, with nothing run and nothing left."""

import ast
import os
import random
import re
import shutil
import sys
import time
import warnings
from pathlib import Path

import pytest

from dofa.errors import LONGEST, DofaError

for needed in ("rasterio", "h5py", "scipy", "geopandas"):
    pytest.importorskip(needed)

from .hostile import VRT, VRT_BAND, Fixtures, command, damaged, readers  # noqa: E402

SLOWEST_S = 20.0
TIMES = int(os.environ.get("DOFA_FUZZ", "1"))  # more cases, by hand
COUNTS = {"mat": 25, "mat-compressed": 25, "stac-json": 250, "model-config": 300, "safe-xml": 250, "chips-json": 300}
EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")
events: list[str] = []
watching = False


def _listen(event: str, args: tuple[object, ...]) -> None:
    if watching and event in EVENTS and not (event == "subprocess.Popen" and "matfile.py" in str(args)):
        events.append(f"{event} {args}")


sys.addaudithook(_listen)


@pytest.fixture(scope="module")
def fx(tmp_path_factory) -> Path:
    return Fixtures(tmp_path_factory.mktemp("faults") / "fx").folder


def outcome(read, file: Path) -> object:
    """What a reader gives, or its refusal; anything else fails, as does a process, a long wait or a long message."""
    global watching
    began, watching = time.monotonic(), True
    events.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(file)
    except DofaError as refused:
        found = refused
    finally:
        watching = False
    assert not events, events
    if isinstance(found, DofaError):
        assert "\n" not in str(found)
        assert 0 < len(str(found)) <= LONGEST
    assert time.monotonic() - began < SLOWEST_S
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", readers(Path()))
def test_damaged_files_are_read_or_refused_in_one_line(kind, fx, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, read = readers(fx)[kind]
    work = tmp_path / "work"
    work.mkdir()
    assert not isinstance(outcome(read, Path(shutil.copy(fx / name, work))), DofaError)
    refused = 0
    for seed in range(COUNTS.get(kind, 400) * TIMES):
        file = work / Path(name).name
        file.write_bytes(damaged(fx / name, random.Random(f"{kind} {seed}")))
        try:
            refused += isinstance(outcome(read, file), DofaError)
        except Exception as error:  # fails the test, with the seed and the file that show it again
            kept = shutil.copy(file, tmp_path / f"{seed}{file.suffix}")
            raise AssertionError(f"{kind}, seed {seed}, {kept}: {type(error).__name__}: {error}") from error
    assert refused
    assert [f.name for f in tmp_path.iterdir()] == ["work"]  # nothing is written elsewhere


# -- the cases that were found -----------------------------------------------------------------------------------------


def _cases() -> list[str]:
    root = Path(os.environ.get("DOFA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "cases" / "faults"
    return sorted(f.name for f in root.glob("*") if not f.name.startswith("zarr-store")) if root.is_dir() else []


READER_OF = {"npz-mat": "mat", "segfault-mat": "mat", "geotiff-tags": "geotiff-bytes"}


# Without the folder there is one test that is skipped, with the reason, instead of none.
@pytest.mark.parametrize("case", _cases() or [pytest.param("", marks=pytest.mark.skip("shared/cases is absent"))])
def test_a_fault_that_was_found_is_answered(case, shared, fx, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shared / "cases" / "faults" / case
    kind = re.sub(r"-[0-9a-f]{1,8}$", "", case)
    told = (folder / "cmd.txt").read_text(errors="replace") if (folder / "cmd.txt").is_file() else ""
    files = [f for f in folder.iterdir() if f.name != "cmd.txt"]
    kind = "chips-json" if any(f.name == "chips.json" for f in files) else READER_OF.get(kind, kind)
    if kind == "own-journals":
        return journal(files, fx, tmp_path)
    if kind == "picture-decoders":
        kind = "hdf5-in-memory" if "HDF5" in told else "tif-in-memory"
    known = readers(fx)
    for number, given in enumerate(files):
        work = tmp_path / str(number)
        work.mkdir()
        if kind == "model-config" and given.name.endswith(".in"):
            write_config(given, work / "config.json", fx)
        else:
            shutil.copy(given, work / Path(known[kind][0]).name)
        found = outcome(known[kind][1], work / Path(known[kind][0]).name)
        # Where a value was taken without a word it is refused now.
        assert isinstance(found, DofaError) or not told.startswith("silent"), told[:200]
        if kind in ("labels-csv", "labels-geojson"):
            line = next(x for x in told.splitlines() if x.startswith("dofa chips"))
            words = re.sub(r"SCRATCH\S*/(l\.\w+)", str(work / Path(known[kind][0]).name), line).split()[1:]
            words = [str(tmp_path / "out") if "SCRATCH" in w else w.replace("fx/", f"{fx}/") for w in words]
            assert len(command(*words)) <= 1


def journal(files: list[Path], fx: Path, work: Path) -> None:
    """A damaged journal of an interrupted `dofa embed`: refused in one line, or begun anew with --overwrite."""
    out = work / "o.tif"
    verb = ["embed", fx / "n.tif", "--weights", fx / "m", "--sensor", "naip-rgbn", "--stats", "scene", "--out", out]
    for given in files or [None]:
        part = work / ".o.tif.part"
        part.mkdir(exist_ok=True)
        (part / "journal.json").write_bytes(given.read_bytes() if given else b'{"job": {}, "done": -1, "cells": -1}')
        assert len(command(*verb)) == 1
        assert command(*verb, "--overwrite") == []
        out.unlink()


def write_config(given: Path, config: Path, fx: Path) -> None:
    """The model's config.json with the encoder that a case gives as a Python literal."""
    import json

    text = re.sub(r"(?<![\w'])(-?)(nan|inf)(?![\w'])", r"\g<1>1e999", given.read_text())
    record = json.loads((fx / "m" / "config.json").read_text())
    config.write_text(json.dumps(record | {"encoder": ast.literal_eval(text)}))


# -- what a file may reach ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A web server of a folder, and its address."""
    import functools
    import http.server
    import threading

    folder = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def naming(source: str) -> str:
    """A VRT of one band whose source is named by its whole path or address."""
    return VRT.format(VRT_BAND.format(1, "R").replace('relativeToVRT="1">n.tif', f'relativeToVRT="0">{source}'))


@pytest.mark.parametrize("name", ["a.vrt", "a.tif", "a.png", "a.VRT"])
def test_a_virtual_file_from_the_network_reads_no_file_here(name, fx, server, monkeypatch) -> None:
    from dofa.raster import open_raster, remote

    monkeypatch.setattr(remote, "WAITS_S", ())
    folder, address = server
    (folder / name).write_text(naming(str(fx / "n.tif")))
    for spec in (f"{address}/{name}", f"/vsicurl/{address}/{name}", f"vrt:///vsicurl/{address}/{name}?bands=1"):
        with pytest.raises(DofaError):
            open_raster(spec, bands=["R"], wavelengths_um=[0.6])


def test_a_virtual_file_here_leads_to_none_on_the_network_but_to_images_there(
    fx, server, tmp_path, monkeypatch
) -> None:
    from dofa.raster import open_raster

    folder, address = server
    (folder / "inner.vrt").write_text(naming(str(fx / "n.tif")))
    shutil.copy(fx / "n.tif", folder / "far.tif")
    (tmp_path / "outer.vrt").write_text(naming(f"/vsicurl/{address}/inner.vrt"))
    with pytest.raises(DofaError, match=r"outer\.vrt names a virtual file from the network"):
        open_raster(tmp_path / "outer.vrt")
    (folder / "disguised.tif").write_text(naming(str(fx / "n.tif")))
    (tmp_path / "disguised.vrt").write_text(naming(f"/vsicurl/{address}/disguised.tif"))
    with pytest.raises(DofaError, match=r"disguised\.tif"):
        open_raster(tmp_path / "disguised.vrt", bands=["R"], wavelengths_um=[0.6])
    (tmp_path / "far.vrt").write_text(naming(f"/vsicurl/{address}/far.tif"))
    with open_raster(tmp_path / "far.vrt", bands=["R"], wavelengths_um=[0.6]) as raster:
        assert raster.read()[0].shape == (1, 64, 64)


def test_code_in_a_virtual_file_is_not_run(fx, tmp_path, monkeypatch) -> None:
    from dofa.raster import open_raster

    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "YES")
    code = (
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        "<PixelFunctionCode><![CDATA[\nopen('ran','w')\ndef f(*a, **k):\n    open('ran','w')\n]]></PixelFunctionCode>"
    )
    band = VRT_BAND.format(1, "R").replace("<Description>", f"{code}<Description>")
    shutil.copy(fx / "n.tif", tmp_path)
    (tmp_path / "a.vrt").write_text(VRT.format(band.replace('band="1"', 'band="1" subClass="VRTDerivedRasterBand"')))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DofaError):
        open_raster("a.vrt", bands=["R"], wavelengths_um=[0.6]).read()
    assert not (tmp_path / "ran").exists()


def test_a_web_service_in_the_clothes_of_an_image_is_not_asked(tmp_path, monkeypatch) -> None:
    from dofa.raster import open_raster

    monkeypatch.chdir(tmp_path)
    service = (
        '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/${z}/${x}/${y}.png</ServerUrl></Service><DataWindow>'
        "<UpperLeftX>-1</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>-1</LowerRightY>"
        "<TileLevel>2</TileLevel></DataWindow><Projection>EPSG:3857</Projection><BandsCount>3</BandsCount><Cache/>"
        "</GDAL_WMS>"
    )
    for name in ("a.tif", "a.xml"):
        (tmp_path / name).write_text(service)
        with pytest.raises(DofaError):
            open_raster(name, "rgb-aerial")
    assert {f.name for f in tmp_path.iterdir()} == {"a.tif", "a.xml"}


def test_a_matlab_file_that_ends_its_reader_ends_nobody_else(fx, tmp_path) -> None:
    """SciPy 1.15 to 1.17 dies of a name's length that leads outside the element."""
    from dofa.datasets.published.hyperspectral import read_hyperspectral
    from dofa.errors import DataError

    whole = (fx / "x.mat").read_bytes()
    at = whole.index(b"cube") - 2
    for length in (0x104, 0x7F, 0xFFFF):
        file = tmp_path / "x.mat"
        file.write_bytes(whole[:at] + length.to_bytes(2, "little") + whole[at + 2 :])
        with pytest.raises(DataError, match=r"x\.mat"):
            read_hyperspectral(str(file))
    for name in ("x.mat", "compressed.mat"):
        assert read_hyperspectral(str(fx / name)).shape == (4, 12, 12)


def test_an_archive_that_unpacks_without_end_is_not_unpacked(tmp_path) -> None:
    import zipfile

    from dofa.datasets.published.hyperspectral import LARGEST, read_hyperspectral
    from dofa.errors import DataError

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("cube.npy", b"x")
    data = bytearray((tmp_path / "x.npz").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = b"\xfe\xff\xff\xff"  # its directory claims 4 GB, five times
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npz"):
        read_hyperspectral(str(tmp_path / "x.npz"))
    assert LARGEST > 2**32
