"""Small valid files of every kind that dofa reads, their readers, and seeded damage to them."""

import contextlib
import copy
import html
import io
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

from dofa import sensors
from dofa.cli import main
from dofa.model.checkpoint import encoder_sha256
from dofa.model.config import EncoderConfig, TrainedSensor
from dofa.model.encoder import DOFA
from dofa.model.heads import Head, palette
from dofa.model.model_folder import save

NAIP = sensors.get("naip-rgbn")
SAFE_XML = """<?xml version="1.0" encoding="UTF-8"?><n1:Level-2A_User_Product xmlns:n1="https://x"><n1:General_Info>
<Product_Info><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE><Product_Organisation><Granule_List><Granule>
{}</Granule></Granule_List></Product_Organisation></Product_Info><Product_Image_Characteristics><Special_Values>
<SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<QUANTIFICATION_VALUES_LIST><BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
</QUANTIFICATION_VALUES_LIST><BOA_ADD_OFFSET_VALUES_LIST>{}</BOA_ADD_OFFSET_VALUES_LIST>
</Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"""
VRT = """<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32632</SRS>
<GeoTransform>500000, 10, 0, 5300000, 0, -10</GeoTransform>{}</VRTDataset>"""
VRT_BAND = """<VRTRasterBand dataType="Byte" band="{0}"><Description>{1}</Description><SimpleSource>
<SourceFilename relativeToVRT="1">n.tif</SourceFilename><SourceBand>{0}</SourceBand></SimpleSource></VRTRasterBand>"""


class Fixtures:
    """A folder with one small valid file of each kind.

    Args:
        folder: to write to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 255, (4, 64, 64), dtype=np.uint8)
        self._rasters(rng)
        self._model()
        self._labels()
        self._documents()
        self._arrays(rng)

    def _rasters(self, rng: np.random.Generator) -> None:
        place = {"crs": "EPSG:32632", "transform": from_origin(500000, 5300000, 10, 10)}
        size = {"width": 64, "height": 64}
        with rasterio.open(self.folder / "n.tif", "w", driver="GTiff", count=4, dtype="uint8", **size, **place) as out:
            out.write(self.pixels)
            for number, band in enumerate(NAIP.band_names, 1):
                out.set_band_description(number, band)
        with rasterio.open(self.folder / "a.png", "w", driver="PNG", count=3, dtype="uint8", **size) as out:
            out.write(self.pixels[:3])
        bands = "".join(VRT_BAND.format(n, b) for n, b in enumerate(NAIP.band_names, 1))
        (self.folder / "a.vrt").write_text(VRT.format(bands))
        root = self.folder / "S2A_MSIL2A.SAFE"
        images = []
        for band, gsd in (("B02", 10), ("B03", 10), ("B04", 10), ("B08", 10), ("B05", 20)):
            name = f"GRANULE/L2A_x/IMG_DATA/R{gsd}m/T32TQM_20200101T000000_{band}_{gsd}m"
            file = root / f"{name}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                file, "w", driver="GTiff", count=1, dtype="uint16", width=640 // gsd, height=640 // gsd,
                crs="EPSG:32632", transform=from_origin(500000, 5300000, gsd, gsd),
            ) as out:  # fmt: skip
                out.write(rng.integers(1000, 4000, (1, 640 // gsd, 640 // gsd), dtype=np.uint16))
            images.append(f"<IMAGE_FILE>{name}</IMAGE_FILE>")
        offsets = [f'<BOA_ADD_OFFSET band_id="{i}">-1000</BOA_ADD_OFFSET>' for i in range(13)]
        (root / "MTD_MSIL2A.xml").write_text(SAFE_XML.format("".join(images), "".join(offsets)))

    def _model(self) -> None:
        torch.manual_seed(0)
        scaling = NAIP.scaling.with_stats([120.0] * 4, [70.0] * 4, "user")
        trained = TrainedSensor(NAIP.band_names, (0.6, 0.5, 0.4, 0.8), scaling, 1.0, "naip")
        config = EncoderConfig(32, 2, 2, 8, 32, wave_dim=16, sensors={"naip-rgbn": trained})
        model = DOFA(config)
        save(model, self.folder / "m")
        head = Head(
            task="segmentation", class_names=("a", "b"), colours=palette(2), encoder_sha256=encoder_sha256(model),
            levels=(1,), sensor=NAIP, scaling=scaling, patch_offset=0, tile_size=16, gsd_m=10.0,
            weight=np.random.default_rng(1).normal(size=(2, 32)), bias=np.zeros(2),
            validation={"metric": "mIoU", "score": {"value": 0.2}, "stride": 4}, ignore=None, nodata=255,
        )  # fmt: skip
        head.save(self.folder / "h")
        torch.save({"model": {"a.weight": torch.ones(3, 4), "b": torch.zeros(2)}}, self.folder / "x.pth")

    def _labels(self) -> None:
        def square(left: int, value: str) -> dict[str, Any]:
            x, y = 500000 + left, 5300000
            ring = [[x, y], [x + 320, y], [x + 320, y - 640], [x, y - 640], [x, y]]
            geometry = {"type": "Polygon", "coordinates": [ring]}
            return {"type": "Feature", "properties": {"class": value}, "geometry": geometry}

        crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
        table = {"type": "FeatureCollection", "crs": crs, "features": [square(0, "a"), square(320, "b")]}
        (self.folder / "l.geojson").write_text(json.dumps(table))
        (self.folder / "l.csv").write_text("lon,lat,class\n9.001,47.85,a\n9.004,47.851,b\n9.005,47.849,a\n")
        with quiet():
            assert main(
                ["chips", str(self.folder / "n.tif"), "--sensor", "naip-rgbn", "--labels",
                 str(self.folder / "l.geojson"), "--class-field", "class", "--task", "segmentation", "--size", "16",
                 "--split", "random", "--out", str(self.folder / "chips")]
            ) == 0  # fmt: skip

    def _documents(self) -> None:
        asset = {"href": "./n.tif", "type": "image/tiff; application=geotiff", "roles": ["data"], "gsd": 10}
        bands = [
            {"name": b.name, "common_name": b.aliases[0], "center_wavelength": b.wavelength_um, "data_type": "uint8"}
            for b in NAIP.bands
        ]
        item = {
            "type": "Feature", "stac_version": "1.1.0", "id": "x", "collection": "naip",
            "properties": {"platform": "naip", "datetime": "2020-01-01"},
            "assets": {"image": {**asset, "bands": bands, "eo:bands": bands, "raster:bands": [{"nodata": 0}] * 4}},
        }  # fmt: skip
        (self.folder / "item.json").write_text(json.dumps(item))
        (self.folder / "s.yaml").write_text(yaml.safe_dump(NAIP.to_dict() | {"name": "mine"}))
        tuning = {"method": "full", "decoder": "upernet", "blocks": [0, 1], "lr": 1e-4, "epochs": 3, "batch": 8}
        (self.folder / "tune.yaml").write_text(yaml.safe_dump(tuning | {"crop": 0.5, "stats": "dataset"}))
        pretrain = {
            "data": {"stores": ["s"], "crop": 32, "batch": {"default": 4, "naip-rgbn": 8}}, "model": {"size": "tiny"},
            "run": {"out": "o", "updates": 5}, "optim": {"lr": 0.001, "betas": [0.9, 0.95]},
        }  # fmt: skip
        (self.folder / "r.yaml").write_text(yaml.safe_dump(pretrain))
        suite = {
            "title": "t", "seeds": [0, 1], "models": {"{name}": {"weights": "{weights}", "on": {"d": {"size": 8}}}},
            "data": {"d": {"data": "chips:chips", "note": "n", "probe": {"size": 16}}},
            "protocols": {"p": {"call": "probe", "fractions": [0.1, 1.0], "data": ["d"], "settings": {"folds": 3}}},
        }  # fmt: skip
        (self.folder / "suite.yaml").write_text(yaml.safe_dump(suite))

    def _arrays(self, rng: np.random.Generator) -> None:
        from scipy.io import savemat

        cube = rng.integers(0, 3000, (12, 12, 4)).astype(np.int16)
        truth = np.repeat(np.arange(3, dtype=np.uint8), 48).reshape(12, 12)
        wave = np.array([634.0, 560.0, 456.0, 876.5])
        arrays = {"cube": cube, "gt": truth, "wavelength_nm": wave}
        savemat(self.folder / "x.mat", arrays)
        savemat(self.folder / "compressed.mat", arrays, do_compression=True)
        np.savez(self.folder / "x.npz", **arrays)
        with h5py.File(self.folder / "x.h5", "w") as out:
            out["data"] = cube
        import pickle

        (self.folder / "x.pkl").write_bytes(pickle.dumps({"label": 3, "bands": [1, 2.5, "x", None]}, protocol=4))


@contextlib.contextmanager
def quiet():
    """Nothing is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def command(*args: object) -> list[str]:
    """Run a command; the lines of its error where it is refused.

    Returns:
        The lines of the standard error of a refusal, none of a success.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(a) for a in args])
        except SystemExit as left:  # argparse's
            code = int(left.code or 0)
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("dofa: warning")]
    assert code in (0, 2), (code, lines)
    return lines if code else []


# -- readers -----------------------------------------------------------------------------------------------------------


def readers(fx: Path) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Of each kind of file: the name of the valid one, and what reads another in a folder of its own.

    Args:
        fx: folder of `Fixtures`.
    """
    from dofa.bench.suite import load_suite
    from dofa.datasets.chip_folder import read_chips
    from dofa.datasets.labels import read_labels
    from dofa.datasets.published.geobench2 import _read_hdf5
    from dofa.datasets.published.hyperspectral import read_hyperspectral
    from dofa.datasets.published.restricted_pickle import read_inert_pickle
    from dofa.documents import parse_json, parse_xml, parse_yaml
    from dofa.finetuning.settings import resolve_settings
    from dofa.model.checkpoint import load
    from dofa.model.convert import read_released
    from dofa.model.heads import load_head
    from dofa.raster import open_raster
    from dofa.raster.in_memory import read_geotiff, read_picture
    from dofa.scene.safe import read_safe
    from dofa.scene.scene import open_scene
    from dofa.scene.stac import read_item
    from dofa.train.recipes import load_config

    def beside(file: Path, *others: str) -> None:
        for other in others:
            if not (file.parent / other).exists():
                source = fx / other
                (shutil.copytree if source.is_dir() else shutil.copy)(source, file.parent / other)

    def pixels(file: Path, sensor: str | None = "naip-rgbn") -> object:
        with open_raster(file, sensor) as raster:
            if raster.width * raster.height > 10**7:
                return None
            return raster.read_physical()

    def model(file: Path) -> object:
        beside(file, ["m", "model.safetensors"][0])
        shutil.copy(file, file.parent / "m" / "config.json")
        return load(file.parent / "m")

    def head(file: Path) -> object:
        beside(file, "h")
        shutil.copy(file, file.parent / "h" / "head.json")
        found = load_head(file.parent / "h")
        assert found.tile_size >= 1
        assert found.gsd_m > 0
        assert all(isinstance(n, str) for n in found.class_names)
        return found

    def chips(file: Path) -> object:
        beside(file, "chips")
        shutil.copy(file, file.parent / "chips" / "chips.json")
        found = read_chips(file.parent / "chips")
        found.read(0)
        return found.places, found.splits, found.read_mask(0) if found.read_mask else None

    def safe(file: Path) -> object:
        root = file.parent / "S2A_MSIL2A.SAFE"
        beside(file, root.name)
        shutil.copy(file, root / "MTD_MSIL2A.xml")
        product = read_safe(root)
        for name in product.part.files:
            assert Path(name.href).is_relative_to(file.parent)
        return product

    def item(file: Path) -> object:
        beside(file, "n.tif")
        read_item(file)
        with contextlib.closing(open_scene(file)) as scene:
            return scene.width

    def virtual(file: Path) -> object:
        beside(file, "n.tif")
        return pixels(file)

    def mat(file: Path) -> object:
        return read_hyperspectral(str(file)).read(0)

    def raw(read: Callable[[bytes], object]) -> Callable[[Path], object]:
        return lambda file: read(file.read_bytes())

    return {
        "finetune-recipe": ("tune.yaml", lambda file: resolve_settings(file, {})),
        "recipe-yaml": ("r.yaml", load_config),
        "suite-yaml": ("suite.yaml", lambda file: load_suite(file).cells(["w=fx/m"])),
        "sensor-yaml": ("s.yaml", lambda file: sensors.get(str(file))),
        "model-config": ("m/config.json", model),
        "head-json": ("h/head.json", head),
        "chips-json": ("chips/chips.json", chips),
        "labels-csv": ("l.csv", lambda file: read_labels(file, class_field="class").bounds),
        "labels-geojson": ("l.geojson", lambda file: read_labels(file, class_field="class").bounds),
        "stac-json": ("item.json", item),
        "safe-xml": ("S2A_MSIL2A.SAFE/MTD_MSIL2A.xml", safe),
        "vrt-xml": ("a.vrt", virtual),
        "geotiff-bytes": ("n.tif", pixels),
        "png-jpeg": ("a.png", lambda file: pixels(file, "rgb-aerial")),
        "npz": ("x.npz", mat),
        "mat": ("x.mat", mat),
        "mat-compressed": ("compressed.mat", mat),
        "pth-checkpoint": ("x.pth", read_released),
        "geobench-pickle": ("x.pkl", raw(lambda data: read_inert_pickle(data, "x"))),
        "tif-in-memory": ("n.tif", raw(lambda data: read_geotiff(data, "x", 2**24))),
        "picture-in-memory": ("a.png", raw(lambda data: read_picture(data, "x", ["PNG", "JPEG"], largest=2**24))),
        "hdf5-in-memory": ("x.h5", raw(lambda data: _read_hdf5(data, "x"))),
        "json": ("item.json", raw(lambda data: parse_json(data, "x"))),
        "yaml": ("suite.yaml", raw(lambda data: parse_yaml(data, "x"))),
        "xml": ("S2A_MSIL2A.SAFE/MTD_MSIL2A.xml", raw(lambda data: parse_xml(data, "x"))),
    }


# -- damage ------------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 256, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**9), 0.5, -0.0, 1e-300, 1e308,
    float("nan"), float("inf"), -float("inf"), "", " ", "x", "²", "\u0663", "nan", "1e-4", "../../etc/passwd",
    "/etc/passwd", "file:///etc/passwd", "http://[", "https://127.0.0.1:9/x.tif", "a\nb\x1b[31m", "\ud800", "\0",
    "x" * 5000, "é" * 300, "2020-13-45", [], {}, [None], [[]], [1, 2, 3], {"a": 1}, {"": None}, ["x"] * 300,
    [[[[[[[[]]]]]]]], {str(i): i for i in range(300)},
)  # fmt: skip
SNIPPETS = (
    b"!!python/object/apply:os.system [id]", b"!!int ''", b"!!bool zz", b"!!timestamp zz", b"!!float x", b"2020-13-45",
    b"&a [*a]", b"*nothing", b"<<: 3", b"? [1, 2]\n: 3\n", b"{", b"[" * 200, b"]", b": ", b"- ", b"\t", b"\0",
    b"\xff\xfe",
    b"%YAML 9.9\n---\n", b"!!binary x", b"!!set {a}", b"&x", b"999999999999999999999", b"1e999", b".nan", b"'", b'"',
    b"<![CDATA[", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"&#0;", b"\xc3\x28", b"\xed\xa0\x80", b",", b",,,,",
    b"\r",
    b"9" * 5000, b"\xe2\x80\xa8", b"</", b"<a>" * 300, b"inf", b"-0",
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        out += _places(entry, (*path, key))
    return out


def damaged_value(value: Any, rng: random.Random) -> Any:
    """A copy of nested lists and mappings with one to three entries replaced, removed, repeated or renamed.

    Args:
        value: valid.
        rng: seeded.
    """
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return value
        *parents, last = rng.choice(places)
        owner = value
        for key in parents:
            owner = owner[key]
        act = rng.random()
        if act < 0.75:
            owner[last] = copy.deepcopy(rng.choice(VALUES))
        elif act < 0.85:
            del owner[last]
        elif isinstance(owner, list):
            owner[last:last] = [owner[last]] * rng.choice((1, 5))
        else:
            owner[rng.choice(("x", "y" * 300, last + "s", "2"))] = owner.pop(last)
    return value


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut off, repeated, overwritten or put in.

    Args:
        data: valid.
        rng: seeded.
    """
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(out) + 1)
        act = rng.random()
        if act < 0.45 and at < len(out):
            out[at] = rng.randrange(256) if rng.random() < 0.6 else rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif act < 0.55:
            del out[at : len(out) if rng.random() < 0.4 else at + rng.randrange(1, 40)]
        elif act < 0.7:
            out[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
        elif act < 0.8:
            end = at + rng.randrange(1, 200)
            out[at:at] = out[at:end]
        else:
            out[at:at] = rng.choice(SNIPPETS)
    return bytes(out)


def damaged_words(text: str, rng: random.Random) -> str:
    """A text of XML or of a table with some attributes, contents or fields replaced or taken out.

    Args:
        text: valid.
        rng: seeded.
    """
    for _ in range(rng.choice((1, 1, 2, 3))):
        inner = "<" in text
        found = rng.choice([*re.finditer(r'(?<=[">])[^"<>]+(?=["<])' if inner else r"[^,\n]+", text)] or [None])
        if found is None:
            return text
        value = rng.choice((*map(str, (v for v in VALUES if not isinstance(v, list | dict))), found[0] * 2, "99", "-5"))
        if inner:
            value = html.escape("".join(c for c in value if c.isprintable() and c != "\ud800"))
        text = text[: found.start()] + value + text[found.end() :]
        if inner and rng.random() < 0.15:  # an element without contents goes
            text = re.sub(r"<(\w+)[^<>]*>[^<>]*</\1>", lambda m: m[0] if rng.random() < 0.8 else "", text)
    return text


def damaged(file: Path, rng: random.Random) -> bytes:
    """A file's bytes with seeded damage: JSON and YAML mostly in their values, others in their bytes.

    Args:
        file: valid.
        rng: seeded.
    """
    data = file.read_bytes()
    if file.suffix in (".json", ".geojson") and rng.random() < 0.75:
        text = json.dumps(damaged_value(json.loads(data), rng))
        return text.encode("utf-8", "surrogatepass")
    if file.suffix == ".yaml" and rng.random() < 0.5:
        text = yaml.safe_dump(damaged_value(yaml.safe_load(data), rng), allow_unicode=rng.random() < 0.5)
        return text.encode("utf-8", "surrogatepass")
    if file.suffix in (".vrt", ".xml", ".csv") and rng.random() < 0.6:
        return damaged_words(data.decode(), rng).encode("utf-8", "surrogatepass")
    if file.suffix == ".npz" and rng.random() < 0.5:  # inside the archive, with sums that fit
        out = io.BytesIO()
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                inner = old.read(name)
                new.writestr(name, damaged_bytes(inner, rng) if rng.random() < 0.5 else inner)
        return out.getvalue()
    return damaged_bytes(data, rng)
