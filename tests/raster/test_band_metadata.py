"""What files say of each band: bad bands in every spelling, names on axes and in lists, several images in one file."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa.errors import DataError

rasterio = pytest.importorskip("rasterio")

from rasterio.transform import from_origin  # noqa: E402

from dofa.raster import gdal, open_raster  # noqa: E402
from dofa.raster.file import Raster  # noqa: E402
from dofa.scene.scene import open_scene  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # of affine 3, inside rasterio
]
S2 = "sentinel-2-l2a"
WAVES = [0.49, 0.56, 0.665, 0.842, 1.61, 2.2]
NAMES = ["B02", "B03", "B11", "B8A"]  # in an order that no product has


def image(bands, height=20, width=30, dtype="int16", seed=0):
    return np.random.default_rng(seed).integers(200, 4000, (bands, height, width)).astype(dtype)


def write(path, array, *, driver="GTiff", names=(), tags=None, band_tags=(), **profile):
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 10, 10)}
    count, height, width = array.shape
    with rasterio.open(
        path, "w", driver=driver, count=count, height=height, width=width, dtype=array.dtype, **{**place, **profile}
    ) as file:
        file.write(array)
        for i, name in enumerate(names, 1):
            file.set_band_description(i, name)
        file.update_tags(**(tags or {}))
        for i, of_band in enumerate(band_tags, 1):
            file.update_tags(i, **of_band)
    return path


def cube(path, header="", bands=6):
    """An ENVI file with wavelengths and what else its header says."""
    write(path, image(bands, dtype="uint8"), driver="ENVI")
    waves = ", ".join(f"{w:g}" for w in WAVES[:bands])
    with path.with_suffix(".hdr").open("a") as file:
        file.write(f"wavelength units = Micrometers\nwavelength = {{{waves}}}\n{header}\n")
    return path


def waves_read(path, **how):
    with open_raster(path, **how) as raster:
        return [b.wavelength_um for b in raster.sensor.bands], raster.warnings


# -- bad bands --------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "integers": lambda good: ", ".join("1" if g else "0" for g in good),
    "decimals": lambda good: ", ".join(f"{float(g):.6f}" for g in good),
    "one decimal": lambda good: ",".join(f"{float(g):.1f}" for g in good),
    "exponents": lambda good: ", ".join(f"{float(g):e}" for g in good),
    "blanks": lambda good: "  ".join(str(int(g)) for g in good),
    "lines": lambda good: ",\n ".join(f" {float(g):.3f}" for g in good),
    "words": lambda good: ", ".join("true" if g else "false" for g in good),
}


@settings(max_examples=60)
@given(
    good=st.lists(st.booleans(), min_size=6, max_size=6).filter(any),
    spelling=st.sampled_from(sorted(SPELLINGS)),
    place=st.sampled_from(["header", "tag", "good tag", "bad tag", "band bbl", "band bad", "band good"]),
)
def test_a_bad_band_is_left_out_however_and_wherever_it_is_said(tmp_path_factory, good, spelling, place):
    folder = tmp_path_factory.mktemp("bad")
    text = SPELLINGS[spelling](good)
    bad = SPELLINGS[spelling]([not g for g in good])
    tags = [{"wavelength": f"{w}", "wavelength_units": "um"} for w in WAVES]
    if place == "header":
        path = cube(folder / "x.img", f"bbl = {{{text}}}")
    elif place.startswith("band"):
        key = {"band bbl": "bbl", "band bad": "bad_band", "band good": "good_wavelengths"}[place]
        entries = [e.strip() for e in (bad if place == "band bad" else text).replace(",", " ").split()]
        path = write(
            folder / "x.tif",
            image(6, dtype="uint8"),
            band_tags=[{**t, key: e} for t, e in zip(tags, entries, strict=True)],
        )
    else:
        key, value = {"tag": ("bbl", text), "good tag": ("good_wavelengths", text), "bad tag": ("bad", bad)}[place]
        path = write(folder / "x.tif", image(6, dtype="uint8"), tags={key: f"{{{value}}}"}, band_tags=tags)
    waves, warnings = waves_read(path)
    assert waves == pytest.approx([w for w, g in zip(WAVES, good, strict=True) if g])
    assert any(w.startswith("bands-left-out") for w in warnings) == (not all(good))


@pytest.mark.parametrize("entries", ["1, 1, 0", "1 1 1 1 1 0 1", "1, 2, 1, 1, 1, x"])
def test_a_list_that_does_not_fit_is_said_and_an_error_under_strict(tmp_path, entries):
    path = cube(tmp_path / "x.img", f"bbl = {{{entries}}}")
    waves, warnings = waves_read(path)
    assert len(waves) == 6
    (said,) = [w for w in warnings if w.startswith("bad-bands-unread")]
    assert "--bands" in said
    with pytest.raises(DataError, match="bad bands"):
        waves_read(path, strict=True)
    with open_raster(path, S2, ["B02", "B03", "B04", "B08", "B11", None]) as raster:
        assert not any("bad-bands" in w for w in raster.warnings)  # the user's word


def test_all_bands_marked_bad_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"all its 6 bands are marked bad.*--bands"):
        waves_read(cube(tmp_path / "x.img", "bbl = {0, 0, 0, 0, 0, 0}"))


@pytest.mark.parametrize("form", ["{:.4f} Micrometers", "{:.3f} um", "({:.3f} µm)", "Band ({:.3f} microns)"])
def test_wavelengths_written_as_descriptions_are_wavelengths(tmp_path, form):
    path = write(tmp_path / "x.tif", image(6, dtype="uint8"), names=[form.format(w) for w in WAVES])
    with open_raster(path, strict=True) as raster:
        assert [b.wavelength_um for b in raster.sensor.bands] == pytest.approx(WAVES)
        assert raster.sensor.band_names[0] == "490nm"


def test_wavelengths_that_do_not_fit_are_said(tmp_path):
    path = write(tmp_path / "x.img", image(3), driver="ENVI", names=["B02", "B03", "B04"])
    with path.with_suffix(".hdr").open("a") as file:
        file.write("wavelength units = Micrometers\nwavelength = {0.49, 0.56}\n")
    with open_raster(path, S2) as raster:
        assert raster.sensor.band_names == ("B02", "B03", "B04")
        assert any("wavelength has 2 entries for 3 bands" in w for w in raster.warnings)


# -- names on axes and in lists ---------------------------------------------------------------------------------------


def dataset(coords=None, attrs=None, dims=("band", "y", "x"), along=None, group_attrs=None):
    """A data set as xarray users write it."""
    xr = pytest.importorskip("xarray")
    array = image(4)
    where = {
        "x": ("x", 500005 + 10.0 * np.arange(30), {"standard_name": "projection_x_coordinate", "units": "m"}),
        "y": ("y", 3999995 - 10.0 * np.arange(20), {"standard_name": "projection_y_coordinate", "units": "m"}),
    }
    if coords is not None:
        where["band"] = ("band", coords)
    data = xr.Dataset({"refl": (("band", "y", "x"), array, attrs or {})}, coords=where, attrs=group_attrs or {})
    data = data.assign_coords({name: ("band", values, more) for name, (values, more) in (along or {}).items()})
    return array, data.transpose(*dims)


def saved(folder, data, kind):
    if kind == "zarr":
        data.to_zarr(folder / "x.zarr", zarr_format=2)
        return folder / "x.zarr"
    if kind == "nc3":
        pytest.importorskip("scipy")
        data.to_netcdf(folder / "x.nc", engine="scipy")
    else:
        netcdf4(folder / "x.nc", data)
    return folder / "x.nc"


def netcdf4(path, data):
    """What `to_netcdf` writes with h5netcdf or netCDF4, by h5py."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:

        def put(name, array, attrs):
            if array.dtype.kind in "UO":
                array = array.astype(h5py.string_dtype())
            file[name] = array
            for key, value in attrs.items():
                file[name].attrs[key] = np.array(value, h5py.string_dtype()) if isinstance(value, list) else value
            return file[name]

        for name in data.dims:
            values = data[name].values if name in data.coords else np.zeros(data.sizes[name])
            put(name, values, data[name].attrs if name in data.coords else {})
            blank = b"This is a netCDF dimension but not a netCDF variable."
            file[name].make_scale(name if name in data.coords else blank)
        for name, values in data.variables.items():
            if name in data.dims:
                continue
            beside = " ".join(c for c in data.coords if c not in data.dims)
            one = put(name, values.values, {**values.attrs, **({"coordinates": beside} if beside else {})})
            for i, axis in enumerate(values.dims):
                one.dims[i].attach_scale(file[axis])


KINDS = ("zarr", "nc3", "nc4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "names",
    [NAMES, np.array(NAMES, object), np.array(NAMES, "S3"), ["blue", "green", "swir16", "nir-narrow"]],
    ids=["unicode", "objects", "bytes", "colours"],
)
def test_the_names_on_a_band_axis_name_the_bands(tmp_path, kind, names):
    array, data = dataset(names)
    with open_raster(saved(tmp_path, data, kind), S2, strict=True, dn_offset=0) as raster:
        assert raster.sensor.band_names == tuple(NAMES)
        assert np.array_equal(raster.read()[0], array)


@pytest.mark.parametrize("kind", ["zarr", "nc4"])
@pytest.mark.parametrize(
    "how",
    [
        {"coords": [1, 2, 3, 4], "attrs": {"long_name": NAMES}},  # rioxarray's, of a GeoTIFF with descriptions
        {"attrs": {"long_name": ", ".join(NAMES)}},
        {"attrs": {"band_names": NAMES}},
        {"attrs": {"band_names": str(NAMES)}},
    ],
)
def test_names_in_a_list_of_attributes_name_the_bands(tmp_path, kind, how):
    _, data = dataset(**how)
    with open_raster(saved(tmp_path, data, kind), S2, strict=True, dn_offset=0) as raster:
        assert raster.sensor.band_names == tuple(NAMES)


@pytest.mark.parametrize(
    "value", [str(NAMES), str(tuple(NAMES)), "B02,B03,B11,B8A", "B02 B03 B11 B8A", "B02; B03; B11; B8A"]
)
def test_names_in_a_list_of_tags_of_a_geotiff_name_the_bands(tmp_path, value):
    path = write(tmp_path / "x.tif", image(4), tags={"band_names": value})
    with open_raster(path, S2, strict=True, dn_offset=0) as raster:
        assert raster.sensor.band_names == tuple(NAMES)


def test_descriptions_come_before_lists_and_lists_of_numbers_are_no_names(tmp_path):
    path = write(tmp_path / "x.tif", image(2), names=["B04", "B03"], tags={"band_names": "B02,B08", "bands": "1,2"})
    with open_raster(path, S2, dn_offset=0) as raster:
        assert raster.sensor.band_names == ("B04", "B03")


@pytest.mark.parametrize("kind", KINDS)
def test_variables_along_the_band_axis_give_wavelengths_and_good_bands(tmp_path, kind):
    along = {
        "wavelength": ([490.0, 560.0, 1380.0, 1613.7], {"units": "nm"}),
        "fwhm": ([65.0, 35.0, 30.0, 90.0], {"units": "nm"}),
        "good_wavelengths": (np.array([1, 1, 0, 1], "int8"), {}),
    }
    _, data = dataset([1, 2, 3, 4], along=along)
    with open_raster(saved(tmp_path, data, kind), S2, dn_offset=0) as raster:
        assert raster.sensor.band_names == ("B02", "B03", "B11")
        assert raster.numbers == (1, 2, 4)
        assert [b.fwhm_um for b in raster.file_bands()] == pytest.approx([0.065, 0.035, 0.03, 0.09])


def test_the_netcdf_of_emit_gives_wavelengths_and_good_bands(tmp_path):
    h5py = pytest.importorskip("h5py")
    values = np.random.default_rng(0).random((30, 20, 5), "f4")
    with h5py.File(tmp_path / "emit.nc", "w") as file:  # the layout of EMITL2ARFL
        file["reflectance"] = values
        for i, (name, size) in enumerate({"downtrack": 30, "crosstrack": 20, "bands": 5}.items()):
            file[name] = np.zeros(size, "f4")
            file[name].make_scale(b"This is a netCDF dimension but not a netCDF variable.")
            file["reflectance"].dims[i].attach_scale(file[name])
        group = file.create_group("sensor_band_parameters")
        group["wavelengths"] = np.array([490, 560, 1380, 1613.7, 2202.4], "f4")
        group["good_wavelengths"] = np.array([1, 1, 0, 1, 1], "f4")
    with open_raster(tmp_path / "emit.nc", S2) as raster:
        assert raster.sensor.band_names == ("B02", "B03", "B11", "B12")
        # GDAL shows swaths of netCDF from their last line on.
        assert np.array_equal(raster.read()[0], values.transpose(2, 0, 1)[[0, 1, 3, 4], ::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_axis_with_a_unit_of_wavelengths_is_one(tmp_path, kind):
    _, data = dataset([490.0, 560.0, 664.6, 1613.7])
    data["band"].attrs["units"] = "nm"
    with open_raster(saved(tmp_path, data, kind), S2, strict=True, dn_offset=0) as raster:
        assert raster.sensor.band_names == ("B02", "B03", "B04", "B11")


def test_a_numbered_axis_names_nothing(tmp_path):
    _, data = dataset([1, 2, 3, 4])
    with pytest.raises(DataError, match="4 bands without names"):
        open_raster(saved(tmp_path, data, "zarr"), S2)


def test_dates_times_bands_are_refused_until_one_date_is_chosen(tmp_path):
    _, data = dataset(NAMES)
    xr = pytest.importorskip("xarray")
    path = saved(tmp_path, xr.concat([data, data + 1], xr.DataArray([0, 31], dims="time", name="time")), "zarr")
    with pytest.raises(DataError, match=r"bands 1 and 5 of the file are both B02.*--bands"):
        open_raster(path, S2)
    with open_raster(path, S2, [*NAMES, None, None, None, None], dn_offset=0) as raster:
        assert raster.numbers == (1, 2, 3, 4)


def test_a_direction_on_the_ground_is_not_taken_for_bands(tmp_path):
    array, data = dataset(NAMES, dims=("y", "x", "band"))
    with open_raster(saved(tmp_path, data, "zarr"), S2, dn_offset=0) as raster:  # GDAL knows x and y by their names
        assert np.array_equal(raster.read(bands=NAMES)[0], array)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"axis y would be read as bands.*transpose"):
        open_raster(saved(tmp_path / "none", data.drop_vars(["x", "y"]), "zarr"), S2)


# -- types and layers of one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32", "float64"])
def test_a_class_layer_of_a_whole_image_masks_in_whatever_type_it_was_written(tmp_path, dtype):
    array = image(4, dtype=dtype)
    array[3] = 4
    array[3, :5] = 9  # clouds
    path = write(tmp_path / "x.tif", array, names=["B4", "B3", "AOT", "SCL"])
    with open_scene(path, S2, mask="SCL", dn_offset=0) as scene:
        from dofa.scene.grid import Window

        (raw,), valid = scene.read(Window(0, 0, 20, 30))
        assert np.array_equal(raw, array[:2])
        assert not valid[:5].any()
        assert valid[5:].all()
        (said,) = [w for w in scene.warnings if w.startswith("bands-left-out")]
        assert "3 (AOT), 4 (SCL)" in said


def test_only_the_bands_read_must_be_of_one_type(tmp_path):
    counts, classes = image(2, dtype="uint16"), np.full((1, 20, 30), 4, "uint8")
    write(tmp_path / "counts.tif", counts)
    write(tmp_path / "classes.tif", classes)
    layers = [("Byte", "SCL", "classes", 1), ("UInt16", "B04", "counts", 1), ("UInt16", "B03", "counts", 2)]
    path = tmp_path / "x.vrt"

    def vrt(names):
        text = "".join(
            f'<VRTRasterBand dataType="{kind}" band="{i}"><Description>{name}</Description><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{file}.tif</SourceFilename><SourceBand>{band}</SourceBand>'
            "</SimpleSource></VRTRasterBand>"
            for i, ((kind, _, file, band), name) in enumerate(zip(layers, names, strict=True), 1)
        )
        path.write_text(f'<VRTDataset rasterXSize="30" rasterYSize="20">{text}</VRTDataset>')

    vrt(["SCL", "B04", "B03"])
    with open_raster(path, S2, dn_offset=0) as raster:
        assert raster.dtype == np.uint16
        assert np.array_equal(raster.read()[0], counts)
    vrt(["B02", "B04", "B03"])
    with pytest.raises(DataError, match=r"several types \(uint16, uint8\).*--bands"):
        open_raster(path, S2, dn_offset=0)


# -- what is no image -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.hdf", b"\x0e\x03\x13\x01" + bytes(99), "reads no HDF4 files.*libgdal-hdf4"),
        ("x.sid", b"msid" + bytes(99), "reads no MrSID files.*convert"),
        ("x.ecw", b"\x65\x03" + bytes(99), "reads no ECW files.*convert"),
        ("x.tif", b"", "is empty"),
        ("x.tif", b"<!DOCTYPE html><html>Log in</html>", "web page.*log"),
        ("x.tif", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("LC08.tar", bytes(257) + b"ustar" + bytes(250), "archive: unpack"),
        ("LC08.tar.gz", b"\x1f\x8b" + bytes(99), "archive: unpack"),
        ("x.zip", b"PK\x03\x04" + bytes(99), "archive: unpack"),
        ("LC08_L2SP_MTL.txt", b"GROUP = L1_METADATA_FILE", "metadata: name the folder"),
        ("MTD_TL.xml", b"<?xml version='1.0'?><Tile/>", "metadata: .*SAFE"),
        ("x.tif", b"II*\0" + bytes(30), "truncated"),
    ],
)
def test_what_gdal_does_not_open_is_answered_by_what_it_is(tmp_path, name, content, says, monkeypatch):
    known = gdal.driver_names() - {"HDF4", "MrSID", "ECW"}  # some builds have them
    monkeypatch.setattr(gdal, "driver_names", lambda: known)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        open_scene(path, S2)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(("code", "name"), [(34712, "JP2000"), (12345, "12345")])
def test_a_compression_that_this_gdal_lacks_is_no_damaged_file(tmp_path, code, name):
    path = write(tmp_path / "x.tif", image(3, dtype="uint8"), compress="lzw")
    raw = bytearray(path.read_bytes())
    at = struct.unpack("<I", raw[4:8])[0]
    for i in range(struct.unpack("<H", raw[at : at + 2])[0]):
        entry = at + 2 + 12 * i
        if struct.unpack("<H", raw[entry : entry + 2])[0] == 259:  # Compression
            raw[entry + 8 : entry + 10] = struct.pack("<H", code)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{name}.*gdal_translate") as caught:
        open_raster(path, "naip-rgb")
    assert "download" not in str(caught.value)


def test_a_folder_of_a_product_says_what_to_name(tmp_path):
    (tmp_path / "S2A_MSIL2A_20240830T100559_N0511_R022_T32TPS_20240830T134009.SAFE").mkdir()
    with pytest.raises(DataError, match=r"name what is in it: .*\.SAFE"):
        open_scene(tmp_path, S2)


# -- several images in one file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_with_a_variable_a_band_is_one_scene(tmp_path, kind, monkeypatch):
    array, data = dataset(NAMES)
    apart = data.refl.to_dataset("band")
    path = saved(tmp_path, apart.assign(SCL=(("y", "x"), np.full((20, 30), 4, "uint8"))), kind)
    monkeypatch.chdir(tmp_path)
    with open_scene(path.name, S2, dn_offset=0, mask="SCL") as scene:
        (part,) = scene.parts
        assert set(part.sensor.band_names) == set(NAMES)
        from dofa.scene.grid import Window

        (raw,), valid = scene.read(Window(0, 0, 20, 30))
        assert valid.all()
        order = [NAMES.index(n) for n in part.sensor.band_names]
        assert np.array_equal(raw, array[order])
        assert all(str(tmp_path) in file.href for file in part.files)  # other processes find it


def test_variables_that_are_no_bands_are_named_with_what_to_pass(tmp_path):
    _, data = dataset(NAMES)
    path = saved(tmp_path, data.assign(slope=(("y", "x"), image(1)[0])), "nc3")
    with pytest.raises(DataError, match=r"name one of its 2 images \(.*x.nc:refl.*--stack"):
        open_scene(path, S2)


def pages(path, arrays, names=()):
    for i, array in enumerate(arrays):
        more = {"APPEND_SUBDATASET": "YES"} if i else {}
        write(path, array, names=names[i] if names else (), **more)
    return path


def test_pages_of_one_band_each_are_bands_by_their_descriptions_or_the_users_names(tmp_path):
    array = image(4, dtype="uint16")
    path = pages(tmp_path / "named.tif", array[:, None], [[n] for n in NAMES])
    with open_scene(path, S2, dn_offset=0, strict=True) as scene:
        assert set(scene.parts[0].sensor.band_names) == set(NAMES)
    path = pages(tmp_path / "plain.tif", array[:, None])
    with pytest.raises(DataError, match=r"4 images in it.*--bands"):
        open_scene(path, S2)
    with open_scene(path, S2, bands=NAMES, dn_offset=0) as scene:
        assert scene.parts[0].sensor.band_names == tuple(NAMES)
        assert [file.href.split(":")[1] for file in scene.parts[0].files] == ["1", "2", "3", "4"]


def test_of_pages_with_several_bands_the_first_is_read_and_the_others_are_named(tmp_path):
    arrays = [image(3, dtype="uint16", seed=s) for s in range(3)]
    path = pages(tmp_path / "x.tif", arrays, [["B02", "B03", "B04"]] * 3)
    with open_scene(path, S2, dn_offset=0) as scene:
        (said,) = [w for w in scene.warnings if w.startswith("pages-left-out")]
        assert "3 pages" in said
        assert "GTIFF_DIR:2:" in said
    with pytest.raises(DataError, match="3 pages"):
        open_scene(path, S2, dn_offset=0, strict=True)
    with open_raster(f"GTIFF_DIR:2:{path}", S2, dn_offset=0) as raster:
        assert np.array_equal(raster.read()[0], arrays[1])
        assert not raster.warnings
    with pytest.raises(DataError, match="GTIFF_DIR:2:"):
        open_raster(path, "landsat-8-l2-st")  # an error of the first page says that there are others


def test_overviews_masks_and_unmarked_smaller_copies_are_no_pages(tmp_path):
    big = image(3, 1200, 1600, "uint16")
    path = write(tmp_path / "x.tif", big, names=["B02", "B03", "B04"], tiled=True)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(np.ones((1200, 1600), bool))
        file.build_overviews([2, 4])
    with Raster(path) as raster:
        assert raster.width == 1600
    with open_raster(path, S2, dn_offset=0) as raster:
        assert not raster.warnings
    path = pages(tmp_path / "copies.tif", [big, big[:, ::2, ::2], big[:, ::4, ::4]], [["B02", "B03", "B04"]] * 3)
    with open_raster(path, S2, dn_offset=0) as raster:
        assert not raster.warnings


@pytest.mark.parametrize("names", ["Band{}", "band_{}", "layer {}", "{}"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbered_variables_count_places_and_name_no_band(tmp_path, kind, names):
    _, data = dataset(NAMES)
    apart = data.refl.to_dataset("band").rename({n: names.format(i) for i, n in enumerate(NAMES, 1)})
    path = saved(tmp_path, apart.drop_attrs(), kind)  # as GDAL's netCDF driver writes a GeoTIFF
    with pytest.raises(DataError, match=r"--bands"):
        open_scene(path, S2)
    with open_scene(path, S2, bands=NAMES, dn_offset=0) as scene:
        assert scene.parts[0].sensor.band_names == tuple(NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_name_tells_the_band_of_a_numbered_variable(tmp_path, kind):
    array, data = dataset(NAMES)
    apart = data.refl.to_dataset("band").rename({n: f"band_{i}" for i, n in enumerate(NAMES, 1)})
    for i, name in enumerate(NAMES, 1):  # rioxarray's band_as_variable
        apart[f"band_{i}"].attrs = {"long_name": name}
    with open_scene(saved(tmp_path, apart, kind), S2, dn_offset=0) as scene:
        from dofa.scene.grid import Window

        (raw,), _ = scene.read(Window(0, 0, 20, 30))
        assert np.array_equal(raw, array[[NAMES.index(n) for n in scene.parts[0].sensor.band_names]])


def test_the_name_of_a_tiff_is_no_name_of_its_pages(tmp_path):
    path = pages(tmp_path / "S2_B04.tif", image(3, dtype="uint16")[:, None])
    with pytest.raises(DataError, match=r"--bands"):
        open_scene(path, S2)


def test_a_store_of_zarr_3_that_this_gdal_does_not_read_is_told_so(tmp_path):
    array, data = dataset(NAMES)
    data.to_zarr(tmp_path / "x.zarr", zarr_format=3)
    try:
        with open_raster(tmp_path / "x.zarr", S2, dn_offset=0) as raster:
            assert np.array_equal(raster.read()[0], array)
        return
    except DataError as error:
        why = str(error)
    assert "zarr_format=2" in why
    assert "name one of" not in why
