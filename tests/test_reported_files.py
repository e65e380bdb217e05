"""Files of the first real use that were found later: names, factors, places and fill values."""

import os
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from dofa import open_scene
from dofa.cli import main
from dofa.errors import ConfigError, DataError
from dofa.inference.cluster import _connected as connected
from dofa.raster import open_raster
from dofa.raster.remote import fetch
from dofa.scene.grid import Window

SIDE = 96
S2 = ("B02", "B03", "B04", "B08")


def write(path, values, names, dtype="uint16", crs="EPSG:32633", transform=None, units=None, tags=None, **changes):
    """A raster of (C, SIDE, SIDE) numbers, or of one median a band, with descriptions."""
    rng = np.random.default_rng(0)
    if np.ndim(values) == 1:
        values = np.asarray(values)[:, None, None] * np.exp(0.2 * rng.normal(size=(len(values), SIDE, SIDE)))
    transform = from_origin(5e5, 58e5, 10, 10) if transform is None else transform
    kind = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": len(values), "dtype": dtype, "crs": crs}
    with rasterio.open(path, "w", photometric="minisblack", transform=transform, **kind) as file:
        file.write(np.asarray(values).astype(dtype))
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
            file.update_tags(number, **((tags or {}).get(number, {})))
        for name, value in changes.items():
            setattr(file, name, value)
        if units:
            file.units = units
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["Band 1 - Rot", "Band 2 - Grün", "Band 3 - Blau", "Band 4 - Infrarot"],
        ["Band 1: Azul", "Band 2: Verde", "Band 3: Rojo", "Band 4: Infrarrojo"],
        [
            "Warp (Band 1:mosaic.tif)",
            "Warp (Band 2:mosaic.tif)",
            "Warp (Band 3:mosaic.tif)",
            "Warp (Band 4:mosaic.tif)",
        ],
        ["stack.tif band 1", "stack.tif band 2", "stack.tif band 3", "stack.tif band 4"],
        ["Band 1 reflectance", "Band 2 reflectance", "Band 3 reflectance", "Band 4 reflectance"],
    ],
)
def test_numbers_of_places_beside_words_that_nobody_reads_name_no_band(tmp_path, names):
    """They were read as the sensor's own numbers: red and blue of four PlanetScope bands swapped."""
    file = write(tmp_path / "a.tif", [600, 700, 430, 2900], names)
    with pytest.raises(DataError, match="--bands"):
        open_raster(file, "sentinel-2-l2a")
    with open_raster(file, "sentinel-2-l2a", bands=["B04", "B03", "B02", "B08"]) as raster:
        assert raster.sensor.band_names == ("B04", "B03", "B02", "B08")


@pytest.mark.parametrize(
    "name", ["NDVI_B8_B4", "NDWI_B8_B11", "nd_B8_B11", "ratio_B2_B3", "B2_stdDev", "B02_unc", "diff_B2"]
)
def test_another_quantity_made_of_bands_is_none_of_them(tmp_path, name):
    file = write(tmp_path / "a.tif", [430, 700, 600, 5000], ["B02", "B03", "B04", name])
    with pytest.raises(DataError, match=name):
        open_raster(file, "sentinel-2-l2a")


def test_numbers_that_are_named_amplitude_are_no_power(tmp_path):
    file = write(tmp_path / "a.tif", [0.32, 0.14], ["Amplitude_VV", "Amplitude_VH"], "float32")
    for sensor in ("sentinel-1-rtc", "sentinel-1-grd"):
        with pytest.raises(DataError, match="amplitudes"):
            open_raster(file, sensor)
    with open_raster(file, "sentinel-1-rtc", unit="linear_power") as raster:
        assert raster.read_physical()[0].mean() == pytest.approx(0.235, rel=0.1)


@pytest.mark.parametrize("how", ["tag", "user"])
def test_the_factor_of_a_product_brings_its_offset(tmp_path, how):
    """Landsat's 2.75e-5 alone made every reflectance 0.2 too high."""
    names = [f"SR_B{n}" for n in range(1, 8)]
    changes = {"scales": [2.75e-5] * 7} if how == "tag" else {}
    file = write(tmp_path / "a.tif", [8400, 8700, 9800, 9500, 18700, 14700, 11900], names, **changes)
    told = {"dn_scale": 2.75e-5} if how == "user" else {}
    with open_raster(file, "landsat-8-l2-sr", **told) as raster:
        assert set(raster.scaling.offset) == {-0.2}
        assert any("offset-of-product" in said for said in raster.warnings)
    with open_raster(file, "landsat-8-l2-sr", dn_scale=1e-4) as raster:  # another factor is taken as it is
        assert set(raster.scaling.offset) == {0}


def test_a_sheared_grid_has_the_metres_of_its_area_and_is_not_squared(tmp_path):
    """A sinusoidal tile far from its meridian: 564.9 m and --gsd 687 were said for 463.3."""
    radius, side = 6371007.181, 463.3127
    x, y = radius * np.radians(110) * np.cos(np.radians(35)), radius * np.radians(35)
    transform = from_origin(x - side * SIDE / 2, y + side * SIDE / 2, side, side)
    names = [f"sur_refl_b0{n}" for n in range(1, 8)]
    crs = f"+proj=sinu +R={radius} +units=m"
    file = write(tmp_path / "a.tif", [600, 2900, 430, 700, 2500, 2000, 1500], names, "int16", crs, transform)
    with open_raster(file, "modis-mod09") as raster:
        assert raster.gsd_m == pytest.approx(side, rel=0.005)
    with open_scene(file, "modis-mod09") as scene:
        assert scene.grid.square
        assert not any("square" in said for said in scene.warnings)


WAVES = (0.4924, 0.5598, 0.6646, 0.8328)


@pytest.mark.parametrize(
    ("unit", "of"),
    [
        ("m", lambda w: w / 1e6), ("cm", lambda w: w / 1e4), ("mm", lambda w: w / 1e3), ("Angstrom", lambda w: w * 1e4),
        ("cm-1", lambda w: 1e4 / w), ("Wavenumber", lambda w: 1e4 / w), ("GHz", lambda w: 299_792.458 / w),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [True, False])
def test_wavelengths_in_any_unit_of_length_or_frequency_are_read(tmp_path, unit, of, named):
    """They were refused, and no flag opened the file."""
    tags = {n: {"wavelength": f"{of(w):.9g}", "wavelength_units": unit} for n, w in enumerate(WAVES, 1)}
    file = write(tmp_path / "a.tif", [430, 700, 600, 2900], S2 if named else [""] * 4, tags=tags)
    with open_raster(file, "sentinel-2-l2a") as raster:
        assert raster.sensor.band_names == S2


@pytest.mark.parametrize("sensor", ["landsat-5-l2-sr", "landsat-7-l2-sr"])
def test_names_of_stac_items_are_those_of_the_older_landsats_too(tmp_path, sensor):
    names = ["blue", "green", "red", "nir08", "swir16", "swir22"]
    file = write(tmp_path / "a.tif", [8400, 9700, 9500, 18700, 14700, 11900], names)
    with open_raster(file, sensor) as raster:
        assert raster.sensor.band_names == ("B1", "B2", "B3", "B4", "B5", "B7")


def bright(dtype="int16", low=300, high=3000):
    """(4, SIDE, SIDE) numbers with clouds in a tenth of the rows."""
    rng = np.random.default_rng(1)
    out = rng.integers(low, high, (4, SIDE, SIDE))
    out[:, ::9] = rng.integers(12_000, 16_000, out[:, ::9].shape)
    return out.astype(dtype)


@pytest.mark.parametrize("value", [-999, -99])
def test_a_small_fill_value_beside_clouds_counts_nowhere(tmp_path, value):
    """Whole scenes counted it as measured, and windows did not."""
    pixels = bright()
    pixels[:, :, :24] = value
    file = write(tmp_path / "a.tif", pixels, S2, "int16")
    with open_raster(file, "sentinel-2-l2a") as raster:
        assert any("undeclared-nodata" in said for said in raster.warnings)
        _, valid = raster.read_physical()
        assert valid.mean() == pytest.approx(0.75)
    with pytest.raises(DataError, match="undeclared-nodata"):
        open_raster(file, "sentinel-2-l2a", strict=True)


def test_the_fill_value_of_modis_in_one_band_is_found(tmp_path):
    pixels = np.random.default_rng(2).integers(300, 3500, (4, SIDE, SIDE)).astype("int16")
    pixels[2, ::8] = -28_672
    names = ["sur_refl_b03", "sur_refl_b04", "sur_refl_b01", "sur_refl_b02"]
    file = write(tmp_path / "a.tif", pixels, names, "int16")
    with open_raster(file, "modis-mod09") as raster:
        assert raster.read_physical()[1].mean() == pytest.approx(7 / 8)
        assert any("-28672" in said for said in raster.warnings)


def test_an_alpha_band_that_is_not_taken_as_a_mask_is_told(tmp_path):
    """A feathered edge over most of the picture was passed over without a word."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(20, 220, (4, SIDE, SIDE))
    pixels[3] = np.clip(np.arange(SIDE) - 24, 0, 200)
    file = tmp_path / "a.tif"
    kind = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 4, "dtype": "uint8"}
    with rasterio.open(file, "w", crs="EPSG:32633", transform=from_origin(5e5, 58e5, 1, 1), **kind) as out:
        out.write(pixels.astype("uint8"))
        out.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    with open_raster(file, "rgb-aerial") as raster:
        assert any("alpha-doubtful" in said for said in raster.warnings)
    with pytest.raises(DataError, match="alpha-doubtful"):
        open_raster(file, "rgb-aerial", strict=True)


def test_a_pipe_is_refused_at_once_as_a_scene_and_as_labels(tmp_path, capsys):
    """GDAL waited for it for ever, and the scenes beside it with it."""
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(DataError, match="pipe"):
        open_raster(tmp_path / "a.tif", "sentinel-2-l2a")
    os.mkfifo(tmp_path / "l.geojson")
    file = write(tmp_path / "b.tif", [430, 700, 600, 2900], S2)
    told = ["--sensor", "sentinel-2-l2a", "--dn-offset", "0", "--labels", str(tmp_path / "l.geojson")]
    assert main(["chips", str(file), *told, "--out", str(tmp_path / "chips")]) == 2
    assert "l.geojson" in capsys.readouterr().err


@pytest.mark.parametrize("gsd", [1e-6, 0, -1])
def test_a_ground_sampling_distance_that_no_scene_has_is_one_line(tmp_path, gsd):
    file = write(tmp_path / "b.tif", [430, 700, 600, 2900], S2)
    with pytest.raises(DataError, match="--gsd"):
        open_scene(file, "sentinel-2-l2a", dn_offset=0, gsd_m=gsd)


SECRET = "http://user:hunter2@127.0.0.1:9/x?sig=SECRET"
ON_AN_ADDRESS = {
    "labels": ["chips", "n.tif", "--sensor", "naip-rgbn", "--labels", SECRET, "--out", "o"],
    "head": ["predict", "n.tif", "--head", SECRET, "--out", "o.tif"],
    "chips": ["probe", "--weights", "random:tiny", "--data", f"chips:{SECRET}"],
    "hyperspectral": ["probe", "--weights", "random:tiny", "--data", f"hyperspectral:{SECRET}"],
    "out": ["embed", "n.tif", "--weights", "random:tiny", "--out", "s3://user:hunter2@b/x.zarr?sig=SECRET"],
    "out of a head": ["finetune", "--weights", "random:tiny", "--data", "chips:c", "--out", SECRET],
    "out of a score": ["evaluate", "--head", "h", "--weights", "m", "--data", "chips:c", "--out", SECRET],
}


@pytest.mark.parametrize("which", ON_AN_ADDRESS)
def test_an_address_where_a_path_is_needed_is_refused_without_what_is_secret(tmp_path, monkeypatch, capsys, which):
    """`Path` took a slash of it, so that it was no address any more: printed whole, or made a folder s3: of results."""
    monkeypatch.chdir(tmp_path)
    assert main(ON_AN_ADDRESS[which]) == 2
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert "SECRET" not in said
    assert not list(tmp_path.iterdir())


def test_a_scheduler_with_a_password_is_refused_without_it():
    with pytest.raises(ConfigError, match="--cluster") as caught, connected("tcp://user:hunter2@127.0.0.1:1"):
        pass
    assert "hunter2" not in str(caught.value)


class Guarded(BaseHTTPRequestHandler):
    """A document for whoever says user:pass word."""

    def do_GET(self):
        told = self.headers.get("Authorization") == f"Basic {b64encode(b'user:pass word').decode()}"
        self.send_response(200 if told else 401)
        if not told:
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.end_headers()
        self.wfile.write(b"{}" if told else b"")

    def log_message(self, *args):
        pass


def test_documents_behind_a_password_are_fetched():
    """The address was asked whole: `Name or service not known`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}/item.json"
    assert fetch(f"http://user:pass%20word@{host}") == b"{}"
    with pytest.raises(DataError) as caught:
        fetch(f"http://user:hunter2@{host}")
    assert "hunter2" not in str(caught.value)
    server.shutdown()
    server.server_close()


def apart(folder, values, names, prefix="scene", **how):
    """A folder of files of one band each."""
    folder.mkdir()
    for band, name in zip(values, names, strict=True):
        write(folder / f"{prefix}_{name}.tif", band[None], [name], **how)
    return folder


def field(medians, seed=0):
    rng = np.random.default_rng(seed)
    return np.asarray(medians)[:, None, None] * np.exp(0.2 * rng.normal(size=(len(medians), SIDE, SIDE)))


def read_all(source, sensor, **how):
    scene = open_scene(source, sensor=sensor, **how)
    values, valid = scene.read(Window(0, 0, scene.height, scene.width))
    return scene, values[0], valid


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_a_fill_value_of_all_files_of_a_folder_is_found_as_in_a_stack(tmp_path, share):
    """Each file was looked at by itself: 65535 in every band counted as measured below 5 %."""
    numbers = field([430, 700, 600, 2900])
    empty = np.s_[:, : round(share * SIDE)]
    numbers[empty] = 65535
    folder = apart(tmp_path / "bands", numbers, S2)
    scene, _, valid = read_all(folder, "sentinel-2-l2a")
    assert not valid[empty[1]].any()
    assert valid[round(share * SIDE) :].all()
    assert any(w.startswith("undeclared-nodata") for w in scene.warnings)
    with pytest.raises(DataError, match="65535"):
        open_scene(folder, sensor="sentinel-2-l2a", strict=True)


def test_saturation_in_one_file_of_a_folder_is_no_fill_value(tmp_path):
    """One band with 65535 in 5 % of its pixels lost them in all bands."""
    numbers = field([430, 700, 600, 2900])
    numbers[2, :10] = 65535  # over a bright cloud, in red alone
    scene, values, valid = read_all(apart(tmp_path / "bands", numbers, S2), "sentinel-2-l2a")
    assert valid.all()
    assert not any(w.startswith("undeclared-nodata") for w in scene.warnings)
    assert (values[2, :10] == 65535).all()


def test_a_fill_value_on_two_grids_needs_both(tmp_path):
    """Ten and twenty metres: in one grid alone it may be saturation."""
    fine, coarse = field([430, 700, 600, 2900]), field([1500, 2500], 1)[:, : SIDE // 2, : SIDE // 2]
    grid = from_origin(5e5, 58e5, 20, 20)
    for both in (True, False):
        folder = tmp_path / f"{both}"
        fine[:, :8] = 65535
        apart(folder, fine, S2)
        coarse[:, :4] = 65535 if both else 1500
        for band, name in zip(coarse, ("B11", "B12"), strict=True):
            with rasterio.open(
                folder / f"scene_{name}.tif", "w", driver="GTiff", height=SIDE // 2, width=SIDE // 2, count=1,
                dtype="uint16", crs="EPSG:32633", transform=grid,
            ) as file:  # fmt: skip
                file.write(band.astype("uint16"), 1)
                file.set_band_description(1, name)
        scene, _, valid = read_all(folder, "sentinel-2-l2a")
        assert valid[9:].all()
        assert valid[:7].any() != both
        assert any(w.startswith("undeclared-nodata") for w in scene.warnings) == both


OFFSET_FILLS = [
    ("sentinel-2-l2a", S2, "float32", -0.1, [0.04, 0.07, 0.06, 0.29]),
    ("sentinel-2-l2a", S2, "float64", -0.1, [0.04, 0.07, 0.06, 0.29]),
    ("sentinel-2-l2a", S2, "int16", -1000, [430, 700, 600, 2900]),
    ("sentinel-2-l2a", S2, "uint16", 64536, [430, 700, 600, 2900]),
    ("landsat-8-l2-sr", ("SR_B2", "SR_B3", "SR_B4", "SR_B5"), "float32", -0.2, [0.04, 0.07, 0.06, 0.29]),
]


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize(("sensor", "names", "dtype", "value", "medians"), OFFSET_FILLS)
def test_the_nodata_value_0_with_a_product_s_offset_added_is_no_measurement(
    tmp_path, sensor, names, dtype, value, medians, stacked
):
    numbers = field(medians)
    numbers[:, :4] = value
    if stacked:
        source = write(tmp_path / "a.tif", numbers, names, dtype)
    else:
        source = apart(tmp_path / "a", numbers, names, dtype=dtype)
    scene, _, valid = read_all(source, sensor)
    assert not valid[:4].any()
    assert valid[4:].all()
    assert any(w.startswith("undeclared-nodata") for w in scene.warnings)


def test_one_dark_band_at_the_offset_is_a_measurement(tmp_path):
    numbers = field([0.04, 0.07, 0.06, 0.29])
    numbers[3, :4] = -0.1
    file = write(tmp_path / "a.tif", numbers, S2, "float32")
    assert read_all(file, "sentinel-2-l2a")[2].all()


@pytest.mark.parametrize(("fill", "warm", "unit"), [(149.0, 295.0, "K"), (-124.15, 22.0, "degC")])
def test_the_nodata_value_0_of_surface_temperature_is_no_measurement(tmp_path, fill, warm, unit):
    numbers = warm + 3 * np.random.default_rng(0).normal(size=(1, SIDE, SIDE))
    numbers[:, :30] = fill
    file = write(tmp_path / "a.tif", numbers, ["ST_B10"], "float32", units=[unit])
    _, _, valid = read_all(file, "landsat-8-l2-st")
    assert not valid[:30].any()
    assert valid[30:].all()


@pytest.mark.parametrize("value", [-99.99, -100.0])
@pytest.mark.parametrize("bands", [[0], [0, 1]])
def test_what_stands_for_no_backscatter_in_decibels_is_found_in_one_band_too(tmp_path, value, bands):
    rng = np.random.default_rng(0)
    numbers = np.array([-9.0, -16.0])[:, None, None] + 2 * rng.normal(size=(2, SIDE, SIDE))
    numbers[bands, :5] = value
    file = write(tmp_path / "a.tif", numbers, ["VV", "VH"], "float32")
    scene, _, valid = read_all(file, "sentinel-1-grd")
    assert not valid[:5].any()
    assert valid[5:].all()
    assert scene.parts[0].scaling.unit == "db"


def test_a_fill_value_of_a_folder_does_not_decide_the_factor(tmp_path):
    """The files were sampled before the look for fill values."""
    numbers = field([0.04, 0.07, 0.06, 0.29])
    numbers[:, : SIDE // 2] = 65535
    folder = apart(tmp_path / "a", numbers, S2, dtype="float32")
    scene, _, valid = read_all(folder, "sentinel-2-l2a")
    assert scene.parts[0].scaling.scale == (1.0,) * 4
    assert not valid[: SIDE // 2].any()


def test_reflectance_with_the_offset_left_in_is_doubted(tmp_path):
    file = write(tmp_path / "a.tif", field([0.04, 0.07, 0.06, 0.29]) + 0.1, S2, "float32")
    assert any("--dn-offset -0.1" in w for w in open_scene(file, sensor="sentinel-2-l2a").warnings)
    with open_raster(file, "sentinel-2-l2a", dn_offset=-0.1) as raster:
        physical, _ = raster.read_physical()
        assert not any(w.startswith("offset-doubtful") for w in raster.warnings)
    assert np.median(physical[0]) == pytest.approx(0.04, abs=2e-3)
    whole = write(tmp_path / "b.tif", field([0.04, 0.07, 0.06, 0.29]), S2, "float32")
    assert not any("offset" in w for w in open_scene(whole, sensor="sentinel-2-l2a").warnings)
