"""Which pixels are measured, held against an independent reading: rasterio's own masks and plain numpy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

rasterio = pytest.importorskip("rasterio")

from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402
from rasterio.windows import Window  # noqa: E402

from dofa.errors import DataError  # noqa: E402
from dofa.raster import open_raster  # noqa: E402
from dofa.raster.masks import nodata_spans, outside  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # of affine 3, inside rasterio
]
L2A = "sentinel-2-l2a"
NAMES = ["B02", "B03", "B04", "B08"]
SIDE = 12
TYPES = ["uint16", "int16", "int32", "uint32", "float32", "float64"]
LIMITS = {"float32": -3.4028234663852886e38, "float64": -1.7976931348623157e308}
fast = settings(max_examples=60, deadline=None)


def write(path, array, *, names=NAMES, colours=None, mask=None, driver="GTiff", **profile):
    """A file of (C, H, W) numbers."""
    count, height, width = array.shape
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 10, 10)} if driver in ("GTiff", "ENVI") else {}
    options = {"driver": driver, "dtype": array.dtype, **place, **profile}
    with rasterio.open(path, "w", count=count, height=height, width=width, **options) as file:
        file.write(array)
        if driver == "GTiff":
            file.descriptions = [*names, *[f"layer{i}" for i in range(count)]][:count]
        if colours:
            file.colorinterp = [ColorInterp[c] for c in colours]
        if mask is not None:
            file.write_mask(mask)
    return path


def noise(bands=3, dtype="uint16", side=SIDE, seed=0, low=200, high=3000):
    return np.random.default_rng(seed).integers(low, high, (bands, side, side)).astype(dtype)


def valid_of(path, sensor=L2A, **words):
    """(h, w) as it is read, whole and in windows."""
    with open_raster(path, sensor, **{"dn_offset": 0, **words}) as r:
        _, valid = r.read()
        for top, left in itertools.product((0, 5), (0, 7)):
            part = r.read(Window(left, top, 5, 6))[1]
            assert np.array_equal(part, valid[top : top + 6, left : left + 5])
        assert np.isnan(r.read_physical()[0]).all(axis=0).tolist() == (~valid).tolist()
        return valid


def gdal_masks(path, numbers=None):
    """(C, h, w) GDAL's own word on each band."""
    with rasterio.open(path) as file:
        return file.read_masks(numbers or list(file.indexes)) != 0


def vrt(path, bands, mask=None, side=SIDE):
    """A VRT of (file, band, nodata or None, mask file or None, description) for each band."""

    def source(file, number):
        name = f'<SourceFilename relativeToVRT="1">{file}</SourceFilename>'
        return f"<SimpleSource>{name}<SourceBand>{number}</SourceBand></SimpleSource>"

    def mask_band(file):
        return f'<MaskBand><VRTRasterBand dataType="Byte">{source(file, 1)}</VRTRasterBand></MaskBand>' if file else ""

    text = ""
    for i, (file, number, nodata, own, name, dtype) in enumerate(bands, 1):
        value = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
        text += f'<VRTRasterBand dataType="{dtype}" band="{i}"><Description>{name}</Description>{value}'
        text += f"{source(file, number)}{mask_band(own)}</VRTRasterBand>"
    path.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{text}{mask_band(mask)}</VRTDataset>')
    return path


# -- nodata values ----------------------------------------------------------------------------------------------------


@st.composite
def nodata_numbers(draw):
    """A type, a nodata value of it, and numbers near it and elsewhere."""
    dtype = np.dtype(draw(st.sampled_from([*TYPES, "uint8", "int8"])))
    if dtype.kind == "f":
        usual = [
            -9999.0,
            -3.4e38,
            1e20,
            0.0,
            0.1,
            -0.1,
            9.969209968386869e36,
            LIMITS[dtype.name],
            -LIMITS[dtype.name],
            1e-40,
        ]
        value = draw(st.sampled_from(usual) | st.floats(width=32, allow_nan=False, allow_infinity=False))
        value, top = float(dtype.type(value)), np.finfo(dtype).max
        near = st.integers(-12, 12).map(lambda k: np.clip(value * (1 + k * 2.0**-23), -top, top).astype(dtype))
        other = st.floats(width=32).map(dtype.type)
    else:
        info = np.iinfo(dtype)
        value = float(draw(st.sampled_from([info.min, info.max, 0, 1]) | st.integers(info.min, info.max)))
        near = st.integers(-2, 2).map(lambda k: np.clip(value + k, info.min, info.max).astype(dtype))
        other = st.integers(info.min, info.max).map(dtype.type)
    return dtype, value, np.array(draw(st.lists(near | other, min_size=1, max_size=40)), dtype)


@fast
@given(nodata_numbers())
def test_a_nodata_value_covers_the_numbers_that_gdal_says_it_does(drawn):
    dtype, value, numbers = drawn
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, height=1, width=numbers.size, dtype=dtype, nodata=value) as file:
            file.write(numbers[None, None])
        with memory.open() as file:
            expected = file.read_masks(1)[0] != 0
            spans = nodata_spans(file.nodata, dtype)
    found = np.logical_and.reduce([outside(numbers, span) for span in spans])
    assert np.array_equal(found | np.isnan(numbers), expected | np.isnan(numbers))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [-9999.0, 0.1, 7.0, 1e20, 9.969209968386869e36, -3.4028230607370965e38, 2.0**-10])
def test_the_edges_of_gdals_tolerance_are_ours(dtype, value):
    kind, top = np.dtype(dtype).type, np.finfo(np.float32).max
    steps = np.concatenate(
        [np.arange(-12, 13) * 2.0**-24, np.linspace(-4e-7, 4e-7, 101), [-1, -0.99, -0.5, 0.5, 30, 34]]
    )
    numbers = np.clip(value * (1 + steps), -float(top), float(top)).astype(dtype)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=1, height=1, width=numbers.size, dtype=dtype, nodata=float(kind(value))
        ) as f:
            f.write(numbers[None, None])
        with memory.open() as file:
            expected, spans = file.read_masks(1)[0] != 0, nodata_spans(file.nodata, np.dtype(dtype))
    assert np.array_equal(np.logical_and.reduce([outside(numbers, span) for span in spans]), expected)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(-1, "uint16"), (70_000, "uint16"), (np.nan, "int16"), (np.nan, "float32"), (np.inf, "float32")],
)
def test_a_nodata_value_that_the_type_has_not_covers_no_number(value, dtype):
    assert nodata_spans(value, np.dtype(dtype)) == ()


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("driver", ["GTiff", "ENVI"])
def test_a_pixel_is_invalid_where_any_band_has_the_nodata_value_of_its_file(tmp_path, dtype, driver):
    array = noise(dtype=dtype)
    array[0, 1, 2] = array[2, 3, 4:6] = -9999
    path = write(tmp_path / "x.img", array, driver=driver, nodata=-9999)
    found = valid_of(path, bands=NAMES[:3])
    assert np.array_equal(found, gdal_masks(path).all(axis=0))
    assert np.array_equal(found, (array != -9999).all(axis=0))


@fast
@given(
    st.lists(st.sampled_from([None, 0, 65535, 9999, 7]), min_size=3, max_size=3),
    hnp.arrays(np.uint16, (3, SIDE, SIDE), elements=st.sampled_from([0, 65535, 9999, 7, 500, 1200])),
)
def test_bands_of_a_virtual_file_have_nodata_values_of_their_own(tmp_path_factory, values, array):
    folder = tmp_path_factory.mktemp("vrt")
    write(folder / "x.tif", array, names=NAMES[:3])
    bands = [("x.tif", i + 1, v, None, NAMES[i], "UInt16") for i, v in enumerate(values)]
    path = vrt(folder / "x.vrt", bands)
    masks = gdal_masks(path)
    alone = [m for m, v in zip(masks, values, strict=True) if v]
    zeros = [m for m, v in zip(masks, values, strict=True) if v == 0]
    expected = np.logical_and.reduce([*alone, np.ones((SIDE, SIDE), bool)])
    if zeros:  # where 0 is nodata, it is so only where all bands say it
        expected &= np.logical_or.reduce(zeros)
    # Bands without one measurement are left out on opening, which is another matter.
    if expected.any() and masks.any(axis=(1, 2)).all():
        assert np.array_equal(valid_of(path, bands=NAMES[:3], nodata=None), expected)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64", "uint32"])
def test_zero_is_nodata_only_where_all_bands_have_it(tmp_path, dtype):
    array = noise(4, dtype)
    array[:, :3] = 0
    array[2:, 6:9] = 0  # a lake at 2.2 µm
    path = write(tmp_path / "x.tif", array, nodata=0)
    expected = np.arange(SIDE)[:, None] >= np.full(SIDE, 3)
    assert np.array_equal(valid_of(path), expected)
    # Nor does the choice of bands make the lake invalid.
    with open_raster(path, L2A, dn_offset=0) as r:
        assert np.array_equal(r.read(bands=["B04", "B08"])[1], expected)
    assert np.array_equal(valid_of(write(tmp_path / "y.tif", array), nodata=0), expected)


def test_not_a_number_counts_beside_any_nodata_value(tmp_path):
    array = noise(dtype="float32") / 1e4
    array[0, 0, 0], array[1, 0, 1], array[2, 0, 2] = np.nan, np.inf, -1
    for nodata in (-1, np.nan):
        path = write(tmp_path / "x.tif", array, nodata=nodata)
        invalid = np.flatnonzero(~valid_of(path, dn_offset=None)).tolist()
        assert invalid == ([0, 1, 2] if nodata == -1 else [0, 1])


def test_a_nodata_value_written_as_text_covers_what_gdal_says(tmp_path):
    """−3.4028230607370965e+38, as ArcGIS writes it, for pixels of −3.4028234663852886e+38."""
    array = noise(dtype="float32") / 1e4
    array[:, 4] = np.finfo("float32").min
    path = write(tmp_path / "x.tif", array, nodata=-3.4028230607370965e38)
    expected = gdal_masks(path).all(axis=0)
    assert expected.sum() == SIDE * (SIDE - 1)
    assert np.array_equal(valid_of(path, dn_offset=None), expected)
    assert np.array_equal(valid_of(write(path, array), dn_offset=None, nodata=-3.4e38), expected)


def test_the_users_nodata_value_replaces_that_of_every_band_and_leaves_masks_alone(tmp_path):
    array = noise()
    array[0, 0, 0], array[1, 0, 1], array[2, 0, 2] = 7, 8, 9
    write(tmp_path / "x.tif", array, names=NAMES[:3])
    write(tmp_path / "m.tif", np.where(np.arange(SIDE) < 11, 255, 0).astype("uint8")[None].repeat(SIDE, 0)[None])
    bands = [("x.tif", i + 1, 7 + i, None, NAMES[i], "UInt16") for i in range(3)]
    path = vrt(tmp_path / "x.vrt", bands)
    assert np.flatnonzero(~valid_of(path)).tolist() == [0, 1, 2]
    assert np.flatnonzero(~valid_of(path, nodata=9)).tolist() == [2]
    path = vrt(tmp_path / "y.vrt", bands, mask="m.tif")
    assert (~valid_of(path, nodata=9)).sum() == 1 + SIDE
    with rasterio.open(write(tmp_path / "z.tif", array), "r+") as file:
        file.update_tags(NODATA_VALUES="7 8 9")
    assert valid_of(tmp_path / "z.tif").all()  # not one pixel has all three
    assert np.flatnonzero(~valid_of(tmp_path / "z.tif", nodata=8)).tolist() == [1]


# -- masks ------------------------------------------------------------------------------------------------------------


@fast
@given(
    hnp.arrays(np.uint8, (3, SIDE, SIDE), elements=st.sampled_from([0, 255, 255, 1])),
    st.sampled_from(["vrt a band", "vrt", "msk a band", "msk", "internal"]),
)
def test_masks_are_those_of_gdal_wherever_they_lie(tmp_path_factory, masks, where):
    folder = tmp_path_factory.mktemp("mask")
    array = noise()
    path = write(folder / "x.tif", array)
    for i, mask in enumerate(masks):
        write(folder / f"m{i}.tif", mask[None])
    bands = [("x.tif", i + 1, None, f"m{i}.tif", NAMES[i], "UInt16") for i in range(3)]
    if where == "vrt a band":
        path = vrt(folder / "x.vrt", bands)
    elif where == "vrt":
        path = vrt(folder / "x.vrt", [(*b[:3], None, *b[4:]) for b in bands], mask="m0.tif")
    elif where == "msk a band":
        write(folder / "x.tif.msk", masks)
        with rasterio.open(folder / "x.tif.msk", "r+", driver="GTiff") as file:
            file.update_tags(**{f"INTERNAL_MASK_FLAGS_{i}": "0" for i in (1, 2, 3)})
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=where == "internal"):
            write(path, array, mask=masks[0])
    found = gdal_masks(path)
    assert np.array_equal(found[0], masks[0] != 0)
    if where.endswith("a band"):
        assert np.array_equal(found, masks != 0)
    assert np.array_equal(valid_of(path), found.all(axis=0))
    with open_raster(path, L2A, dn_offset=0) as r:
        assert np.array_equal(r.read(bands=["B03"])[1], found[1])


def test_a_mask_goes_before_a_nodata_value_of_zero_and_beside_any_other(tmp_path):
    array = noise()
    array[:, 0] = 0
    mask = np.ones((SIDE, SIDE), bool)
    mask[1] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "x.tif", array, mask=mask, nodata=0)
    assert np.array_equal(valid_of(path), mask)
    assert np.array_equal(valid_of(path), gdal_masks(path).all(axis=0))
    array[:, 0] = 65535
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "y.tif", array, mask=mask, nodata=65535)
    assert np.flatnonzero(~valid_of(path).any(axis=1)).tolist() == [0, 1]


def test_nodata_values_of_all_bands_together_are_one_mask(tmp_path):
    array = noise()
    array[:, 2] = np.array([1, 2, 3])[:, None]
    array[0, 3] = 1
    path = write(tmp_path / "x.tif", array)
    with rasterio.open(path, "r+") as file:
        file.update_tags(NODATA_VALUES="1 2 3")
    assert np.array_equal(valid_of(path), gdal_masks(path).all(axis=0))
    assert np.flatnonzero(~valid_of(path).any(axis=1)).tolist() == [2]


# -- alpha ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "opaque"),
    [
        ("uint16", 65535),
        ("uint16", 255),
        ("uint16", 1),
        ("int16", 32767),
        ("float32", 1),
        ("float32", 255),
        ("uint8", 255),
        ("uint8", 1),
    ],
)
@pytest.mark.parametrize("at", [0, 2, 4])
def test_an_alpha_band_masks_wherever_it_stands_and_whatever_its_depth(tmp_path, dtype, opaque, at):
    array = noise(4, dtype if dtype != "uint8" else "uint8", low=1, high=250)
    alpha = np.full((1, SIDE, SIDE), opaque, dtype)
    alpha[0, :5] = 0
    if opaque > 9:
        alpha[0, 5, :6] = opaque // 2, opaque // 4, 3, 2, 1, 0  # a soft edge: what is not wholly transparent is there
    names = ["B", "G", "R", "NIR"]
    names.insert(at, "alpha")
    colours = ["undefined"] * 5
    colours[at] = "alpha"
    array = np.insert(array, at, alpha[0], axis=0)
    path = write(tmp_path / "x.tif", array, names=names, colours=colours)
    with open_raster(path, "gaofen-2", dn_offset=None) as r:
        assert r.sensor.band_names == ("B", "G", "R", "NIR")
        assert np.array_equal(r.read()[1], alpha[0] != 0)
        assert np.array_equal(r.read(bands=["R"])[1], alpha[0] != 0)


def test_an_alpha_band_of_another_type_masks_a_virtual_file(tmp_path):
    write(tmp_path / "x.tif", noise(2))
    alpha = np.full((1, SIDE, SIDE), 255, "uint8")
    alpha[0, 3] = 0
    write(tmp_path / "a.tif", alpha)
    bands = [("x.tif", 1, None, None, "B02", "UInt16"), ("x.tif", 2, None, None, "B03", "UInt16")]
    path = vrt(tmp_path / "x.vrt", [*bands, ("a.tif", 1, None, None, "alpha", "Byte")])
    path.write_text(
        path.read_text().replace("<Description>alpha", "<ColorInterp>Alpha</ColorInterp><Description>alpha")
    )
    assert np.array_equal(valid_of(path), alpha[0] != 0)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pictures_with_an_alpha_band_are_masked_in_png(tmp_path, bands, dtype):
    array = noise(bands + 1, dtype, low=1, high=250)
    array[-1], array[-1, 2] = np.iinfo(dtype).max, 0
    path = write(tmp_path / "x.png", array, driver="PNG")
    names = [*["R", "G", "B"][:bands], None]
    with open_raster(path, "rgb-aerial", bands=names) as r:
        assert np.array_equal(r.read()[1], array[-1] != 0)


def test_an_infrared_band_that_is_marked_alpha_masks_nothing_where_it_is_not_read(tmp_path):
    array = noise(4, "uint8", low=0, high=250)
    path = write(tmp_path / "x.tif", array, colours=["red", "green", "blue", "alpha"])
    assert (array[3] == 0).any()
    with open_raster(path, "naip-rgb", bands=["R", "G", "B", None]) as r:
        assert r.read()[1].all()


def test_bands_of_several_types_are_refused_still(tmp_path):
    write(tmp_path / "x.tif", noise(1))
    write(tmp_path / "a.tif", noise(1, "uint8", high=250))
    bands = [("x.tif", 1, None, None, "B02", "UInt16"), ("a.tif", 1, None, None, "B03", "Byte")]
    with pytest.raises(DataError, match="several types"):
        open_raster(vrt(tmp_path / "x.vrt", bands), L2A)


# -- other containers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.nc", "x.zarr"])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_fill_values_of_netcdf_and_zarr(tmp_path, name, dtype):
    xr = pytest.importorskip("xarray")
    array = noise(3, dtype)
    array[:, 2, 3], array[1, 4, 4] = -9999, -9999
    meta = {"_FillValue": np.dtype(dtype).type(-9999), "units": "reflectance", "scale_factor": 1e-4}
    data = xr.Dataset(
        {"refl": (("wavelength", "y", "x"), array, meta)},
        coords={
            "wavelength": ("wavelength", [490.0, 560.0, 2200.0], {"units": "nm"}),
            # Without a place GDAL turns netCDF upside down.
            "y": ("y", np.arange(SIDE)[::-1] * 10.0, {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", np.arange(SIDE) * 10.0, {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
    )
    if name.endswith(".nc"):
        data.to_netcdf(tmp_path / name, engine="scipy")
    else:
        data.to_zarr(tmp_path / name, consolidated=True, zarr_format=2)
    found = valid_of(tmp_path / name, None, dn_offset=None)
    assert np.array_equal(found, (array != -9999).all(axis=0))
    assert np.array_equal(found, gdal_masks(tmp_path / name).all(axis=0))


# -- products in which 0 is no measurement ----------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [None, 0])
@pytest.mark.parametrize(
    ("sensor", "names", "told"),
    [
        (L2A, NAMES, {"dn_offset": -1000}),
        ("landsat-8-l2-sr", ["SR_B2", "SR_B3", "SR_B4", "SR_B5"], {"dn_offset": None}),
    ],
)
def test_where_the_offset_makes_0_impossible_a_0_in_one_band_is_no_measurement(tmp_path, sensor, names, told, declared):
    image = noise(4, low=8000, high=20000)
    image[1, 2:5, 3:9] = 0
    path = write(tmp_path / "x.tif", image, names=names, nodata=declared)
    assert np.array_equal(valid_of(path, sensor, **told), (image != 0).all(axis=0))


@pytest.mark.parametrize(("offset", "nodata"), [(0, 0), (-1000, 65535)])
def test_a_0_in_one_band_is_water_where_the_offset_or_the_user_leaves_it_one(tmp_path, offset, nodata):
    image = noise(4, low=1100)
    image[1, 2:5, 3:9] = 0
    path = write(tmp_path / "x.tif", image, nodata=nodata if nodata == 0 else None)
    words = {} if nodata == 0 else {"nodata": nodata}
    assert valid_of(path, dn_offset=offset, **words).all()


@pytest.mark.parametrize("dtype", ["uint16", "uint8"])
def test_a_band_described_as_alpha_masks_however_soft_its_edge_is(tmp_path, dtype):
    image = noise(4, dtype, side=48, low=20, high=250)
    image[3] = np.clip(np.arange(48) - 10, 0, None)[:, None]
    colours = ["red", "green", "blue", "alpha"]
    path = write(tmp_path / "x.tif", image, names=["B04", "B03", "B02", "Alpha"], colours=colours)
    with open_raster(path, L2A, dn_offset=0) as r:
        assert np.array_equal(r.read()[1], image[3] > 0)
