"""Where pixels lie and how large they are on the ground: measured on the ellipsoid, or said to be unknown."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

rasterio = pytest.importorskip("rasterio")

from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from rasterio.transform import Affine, from_origin  # noqa: E402
from rasterio.warp import transform  # noqa: E402

from dofa.errors import DataError  # noqa: E402
from dofa.inference.info import describe  # noqa: E402
from dofa.raster import gdal, open_raster  # noqa: E402
from dofa.scene.grid import Grid, Window  # noqa: E402
from dofa.scene.scene import open_scene  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # of affine 3, inside rasterio
]
NAMES = ["B02", "B03", "B04", "B08"]
L2A = "sentinel-2-l2a"
LOCAL = 'LOCAL_CS["mine",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
ENGINEERING = (
    'ENGCRS["site grid",EDATUM["mine"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["US foot",0.3048006]]'
)
# Spherical and ellipsoidal Mercator in their spellings, global cylinders, an equal-area one, and degrees.
STRETCHED = ["EPSG:3857", "EPSG:900913", "ESRI:102100", "EPSG:3395", "EPSG:4087", "EPSG:6933", "EPSG:4326", "EPSG:4258"]


def write(path, image=None, names=NAMES, *, gcps=None, rpcs=None, **profile):
    image = np.random.default_rng(0).integers(200, 3000, (len(names), 40, 50), "uint16") if image is None else image
    count, height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=image.dtype, **profile
    ) as file:
        file.write(image)
        file.descriptions = names
        if gcps:
            file.gcps = gcps
        if rpcs:
            file.rpcs = rpcs
    return path


def on_the_ground(crs, affine, col, row) -> tuple[float, float]:
    """Across and down of a pixel by PROJ's geodesics, from the longitudes and latitudes of its edges' middles."""
    geod = pytest.importorskip("pyproj").Geod(ellps="WGS84")
    ends = [(col - 0.5, row), (col + 0.5, row), (col, row - 0.5), (col, row + 0.5)]
    xs, ys = zip(*(gdal.at(affine, *end) for end in ends), strict=True)
    lon, lat = transform(crs, "EPSG:4326", xs, ys)
    return tuple(geod.inv(lon[i], lat[i], lon[i + 1], lat[i + 1])[2] for i in (0, 2))


# -- metres on the ground ---------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(
    code=st.sampled_from([*STRETCHED, "EPSG:3035", "EPSG:3031", "EPSG:5070", "EPSG:2056", "EPSG:32633", "EPSG:2263"]),
    lon=st.floats(-170, 170),
    lat=st.floats(-78, 78),
    metres=st.sampled_from([0.2, 3.0, 10.0, 500.0]),
    turn=st.sampled_from([0.0, 0.0, 33.0]),
)
def test_pixels_measure_what_they_do_on_the_ground(code, lon, lat, metres, turn):
    crs = CRS.from_string(code)
    zones = {"EPSG:3035": (10, 52), "EPSG:3031": (lon, -75), "EPSG:5070": (-96, 38), "EPSG:2056": (8, 47)}
    zones |= {"EPSG:32633": (15, lat), "EPSG:2263": (-74, 40.7)}
    lon, lat = zones.get(code, (lon, lat))
    (x,), (y,) = transform("EPSG:4326", crs, [lon], [lat])
    assume(np.isfinite(x) and np.isfinite(y))
    side = metres / 111_000 if crs.is_geographic else metres / crs.linear_units_factor[1]
    affine = Affine.translation(x, y) * Affine.rotation(turn) * Affine.scale(side, -side)
    grid = Grid(crs, affine, 10, 10)
    expected = on_the_ground(crs, affine, 5, 5)
    assert gdal.pixel_size_m(grid) == pytest.approx(expected, rel=0.0105)
    if turn == 0:
        assert grid.gsd_m == pytest.approx((expected[0] * expected[1]) ** 0.5, rel=0.0105)


@pytest.mark.parametrize("side", [0.15, 0.3, 0.6, 10.0, 20.0, 30.0])
@pytest.mark.parametrize("code", ["EPSG:32601", "EPSG:32733", "EPSG:25832", "EPSG:2154", "EPSG:26917"])
def test_a_projection_true_to_scale_keeps_its_own_metres_to_the_last_bit(code, side):
    crs = CRS.from_string(code)
    x, y = (7e5, 6.6e6) if code == "EPSG:2154" else (4.1e5, 5e6)
    grid = Grid(crs, from_origin(x, y, side, side), 300, 200)
    assert grid.gsd_m == (side * side) ** 0.5
    assert grid.square


def test_a_turned_grid_has_the_metres_of_its_area():
    turned = from_origin(5e5, 4e6, 10, 10) * Affine.rotation(30) * Affine.shear(20)
    grid = Grid(CRS.from_epsg(32633), turned, 50, 40)
    assert grid.gsd_m == abs(turned.determinant) ** 0.5


def test_a_survey_foot_is_a_foot():
    grid = Grid(CRS.from_epsg(2263), from_origin(9.9e5, 2e5, 2, 2), 100, 100)
    assert grid.gsd_m == pytest.approx(2 * 0.3048, rel=1e-4)


# -- pixels that are not square ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "affine", "says"),
    [
        ("EPSG:4326", from_origin(25, 60, 1e-4, 1e-4), True),
        ("EPSG:4326", from_origin(25, 60, 2e-4, 1e-4), False),
        ("EPSG:4326", from_origin(25, 5, 1e-4, 1e-4), False),
        ("EPSG:4326", from_origin(25, -25, 1e-4, 1e-4), True),
        ("EPSG:32633", from_origin(5e5, 4e6, 10, 20), True),
        ("EPSG:32633", from_origin(5e5, 4e6, 10, 10.05), False),
        ("EPSG:32633", from_origin(5e5, 4e6, 10, 10) * Affine.rotation(40), False),
        ("EPSG:3857", from_origin(2.78e6, 8.44e6, 10, 10), False),
        ("EPSG:4087", from_origin(2.78e6, 6.6e6, 10, 10), True),
    ],
)
def test_pixels_that_are_not_square_on_the_ground_are_said(tmp_path, crs, affine, says):
    with open_scene(write(tmp_path / "a.tif", crs=crs, transform=affine), L2A, dn_offset=0, strict=True) as scene:
        assert any(w.startswith("pixels-not-square: a.tif: ") for w in scene.warnings) == says
        across, down = gdal.pixel_size_m(scene)
        assert any(f"{across:.4g} m across and {down:.4g} m down" in w for w in scene.warnings) == says


@pytest.mark.parametrize(
    ("crs", "affine", "gsd"),
    [
        ("EPSG:4326", from_origin(25, 60, 1e-4, 1e-4), 11.0),
        ("EPSG:32633", from_origin(5e5, 4e6, 10, 20), 10.0),
        ("EPSG:4087", from_origin(2.78e6, 6.6e6, 10, 10), 8.0),
        ("EPSG:3857", from_origin(2.78e6, 8.44e6, 10, 10), 10.0),
    ],
)
def test_gsd_makes_pixels_square_and_keeps_everything_in_its_place(tmp_path, crs, affine, gsd):
    image = np.full((4, 240, 320), 500, "uint16")
    image[:, 120:160, 200:260] = 4000  # a field
    path = write(tmp_path / "a.tif", image, crs=crs, transform=affine)
    with open_scene(path, L2A, dn_offset=0, gsd_m=gsd) as scene:
        assert gdal.pixel_size_m(scene) == pytest.approx((gsd, gsd), rel=0.01)
        assert scene.gsd_m == pytest.approx(gsd, rel=0.01)
        assert not any(w.startswith("pixels-not-square") for w in scene.warnings)
        (raw,), valid = scene.read(Window(0, 0, scene.height, scene.width))
        rows, cols = np.nonzero(raw[0] > 2250)
        left, top = gdal.at(scene.transform, cols.min(), rows.min())
        right, bottom = gdal.at(scene.transform, cols.max() + 1, rows.max() + 1)
        step = abs(scene.transform.a), abs(scene.transform.e)
        for found, expected, slack in (
            ((left, right), [affine.c + affine.a * col for col in (200, 260)], step[0]),
            ((top, bottom), [affine.f + affine.e * row for row in (120, 160)], step[1]),
        ):
            assert np.allclose(found, expected, atol=slack, rtol=0)
        corner = gdal.at(scene.transform, scene.width, scene.height)
        assert corner[0] == pytest.approx(affine.c + affine.a * 320, abs=step[0])
        assert corner[1] == pytest.approx(affine.f + affine.e * 240, abs=step[1])
        assert valid.all()


# -- no place ---------------------------------------------------------------------------------------------------------


GCPS = [GroundControlPoint(r, c, 13 + c / 1e4, 52 - r / 1e4, 40.0) for r in (0, 40) for c in (0, 50)]


def placeless(tmp_path, kind):
    """A file that says something of a place, and leads to none."""
    if kind == "gcps":
        return write(tmp_path / "a.tif", gcps=(GCPS, CRS.from_epsg(4326)))
    if kind == "rpc":
        ones = [1.0] + [0.0] * 19
        rpcs = rasterio.rpc.RPC(
            height_off=0, height_scale=1, lat_off=52, lat_scale=1, line_den_coeff=ones, line_num_coeff=ones,
            line_off=20, line_scale=20, long_off=13, long_scale=1, samp_den_coeff=ones, samp_num_coeff=ones,
            samp_off=25, samp_scale=25,
        )  # fmt: skip
        return write(tmp_path / "a.tif", rpcs=rpcs)
    if kind == "no transform":
        return write(tmp_path / "a.tif", crs="EPSG:32633")
    systems = {"local": LOCAL, "engineering": ENGINEERING, "geocentric": "EPSG:4978"}
    return write(tmp_path / "a.tif", crs=systems[kind], transform=from_origin(950000, 6500000, 0.2, 0.2))


@pytest.mark.parametrize(
    ("kind", "cure"),
    [
        ("gcps", "gdalwarp -tps"),
        ("rpc", "gdalwarp -rpc"),
        ("no transform", "gdal_edit.py -a_ullr"),
        ("local", "gdal_edit.py -a_srs"),
        ("engineering", "gdal_edit.py -a_srs"),
        ("geocentric", "gdal_edit.py -a_srs"),
    ],
)
def test_a_file_without_a_place_says_why_and_goes_on(tmp_path, kind, cure):
    path = placeless(tmp_path, kind)
    with open_raster(path, L2A) as raster:
        assert raster.crs is raster.gsd_m is raster.centre_lonlat is raster.bounds_lonlat is None
    with open_scene(path, L2A, dn_offset=0, strict=True) as scene:
        assert scene.crs is scene.gsd_m is None
        (said,) = [w for w in scene.warnings if w.startswith("no-place: a.tif: ")]
        assert cure in said
        known = describe(scene)
        assert said in known["doubts"]
        assert known["grid"]["gsd_m"] is known["grid"]["crs"] is known["grid"]["bounds_lonlat"] is None
    with pytest.raises(DataError, match=r"no place on Earth.*--gsd"):
        open_scene(path, L2A, dn_offset=0, gsd_m=20)


def test_what_gdalwarp_is_told_to_do_with_control_points_gives_the_place(tmp_path):
    path = placeless(tmp_path, "gcps")
    with rasterio.open(path) as source, rasterio.vrt.WarpedVRT(source, dst_crs="EPSG:4326") as warped:
        image = warped.read()
        profile = {"crs": warped.crs, "transform": warped.transform, "nodata": 0}
    with open_scene(write(tmp_path / "warped.tif", image, **profile), L2A, dn_offset=0) as scene:
        assert scene.gsd_m is not None
        assert not any(w.startswith("no-place") for w in scene.warnings)


@pytest.mark.parametrize("name", ["a.tif", "b.png"])
def test_a_picture_that_says_nothing_of_a_place_is_not_doubted(tmp_path, name):
    image = np.random.default_rng(0).integers(0, 255, (3, 40, 50), "uint8")
    driver = "PNG" if name.endswith("png") else "GTiff"
    with rasterio.open(tmp_path / name, "w", driver=driver, count=3, height=40, width=50, dtype="uint8") as file:
        file.write(image)
    with open_scene(tmp_path / name, "rgb-aerial") as scene:
        assert not any(w.startswith(("no-place", "pixels-not-square")) for w in scene.warnings)


# -- real files -------------------------------------------------------------------------------------------------------


def test_real_files_in_utm_keep_their_metres_and_are_not_doubted(real_data):
    for name, gsd in {
        "single_scenes/naip_va_1m.tif": 1.0,
        "single_scenes/s2_l1c_newzealand_T60HWB.tif": 10.0,
        "naip": 5.0,
    }.items():
        path = real_data / name
        path = min(path.glob("*.tif")) if path.is_dir() else path
        with rasterio.open(path) as file:
            if file.crs is None or not file.crs.is_projected:
                continue
            grid = Grid(file.crs, file.transform, file.width, file.height)
            assert grid.gsd_m == abs(file.transform.determinant) ** 0.5 * file.crs.linear_units_factor[1]
            assert grid.gsd_m == pytest.approx(gsd, rel=0.2)
            assert grid.square


def test_real_radar_in_degrees_is_measured_on_the_ground(real_data):
    for path in sorted((real_data / "sen1floods11" / "S1Hand").glob("*.tif")):
        with rasterio.open(path) as file:
            size = gdal.pixel_size_m(file)
            expected = on_the_ground(file.crs, file.transform, file.width / 2, file.height / 2)
        assert size == pytest.approx(expected, rel=1e-4)
        assert size[1] == pytest.approx(10, rel=0.02)


def test_features_of_a_file_with_control_points_keep_them(tmp_path):
    torch = pytest.importorskip("torch")
    import dofa

    torch.manual_seed(0)
    model = dofa.create("tiny", width=48, depth=2, heads=3, patch=8, image_size=32).eval()
    path = placeless(tmp_path, "gcps")
    features = dofa.embed(path, model, sensor=L2A, dn_offset=0, stats="scene", stride=4)
    assert any("ground control points" in w for w in features.inputs.scene.warnings)
    with rasterio.open(features.write(tmp_path / "features.tif")) as made:
        points, crs = made.gcps
        assert made.crs is None
        assert crs.to_epsg() == 4326
        offset, stride = features.plan.offset, features.plan.stride
        found = sorted((p.row * stride - offset, p.col * stride - offset, p.x, p.y) for p in points)
        assert np.allclose(found, sorted((p.row, p.col, p.x, p.y) for p in GCPS))
    with open_scene(path, L2A, dn_offset=0) as scene, scene.crop(Window(8, 16, 24, 24)) as part:
        assert part.control_points[1][0][:2] == (-8, -16)
