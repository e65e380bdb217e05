"""STAC items as catalogues write them: which assets are bands, what the numbers mean, and which files they name."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dofa import sensors
from dofa.errors import DataError, DofaError

pytest.importorskip("rasterio")

from dofa.inference.many import output_paths
from dofa.scene.grid import Window
from dofa.scene.scene import open_scene
from dofa.scene.stac import is_item, read_item

from .conftest import write_tiff

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of affine 3, inside rasterio
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
L2A = sensors.get("sentinel-2-l2a").band_names
# Earth Search names its assets by what they show.
SHOWN = dict(
    zip(
        ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16",
         "swir22"),
        L2A, strict=True,
    )
)  # fmt: skip
GSD = {b.name: b.gsd_m or 10 for b in sensors.get("sentinel-2-l2a").bands}


def write_item(folder, assets, collection=None, version="1.0.0", name="item.json", **properties):
    path = folder / name
    data = {"type": "Feature", "stac_version": version, "id": "the-item", "properties": properties, "assets": assets}
    path.write_text(json.dumps({**data, "collection": collection}))
    return path


def earth_search(folder, **properties):
    """Like earth-search v1, collection sentinel-2-l2a: the COGs, the JPEG 2000 files beside them, pictures, classes."""
    assets = {}
    for key, band in SHOWN.items():
        common = "rededge" if key.startswith("rededge") else key
        told = {"nodata": 0, "data_type": "uint16", "spatial_resolution": GSD[band], "scale": 0.0001, "offset": -0.1}
        assets[f"{key}-jp2"] = {
            "href": f"s3://sentinel-s2-l2a/{band}.jp2", "type": "image/jp2", "roles": ["data", "reflectance"],
            "eo:bands": [{"name": key, "common_name": common}], "raster:bands": [told],
        }  # fmt: skip
        assets[key] = {**assets[f"{key}-jp2"], "href": f"./{band}.tif", "type": COG}
    rgb = [{"name": n, "common_name": n} for n in ("red", "green", "blue")]
    assets["visual"] = {"href": "./TCI.tif", "type": COG, "roles": ["visual"], "eo:bands": rgb}
    assets["scl"] = {"href": "./SCL.tif", "type": COG, "roles": ["data", "reflectance"], "gsd": 20}
    assets["aot"] = {"href": "./AOT.tif", "type": COG, "roles": ["data", "reflectance"]}
    assets["thumbnail"] = {"href": "./preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    assets["tileinfo_metadata"] = {"href": "./tileInfo.json", "type": "application/json", "roles": ["metadata"]}
    told = {"platform": "sentinel-2b", "constellation": "sentinel-2", **properties}
    return write_item(folder, assets, "sentinel-2-l2a", **told)


# -- which assets -----------------------------------------------------------------------------------------------------


def test_an_earth_search_item_gives_the_twelve_bands_from_the_cogs_and_its_classes(tmp_path):
    found = read_item(earth_search(tmp_path, **{"earthsearch:boa_offset_applied": True}))
    assert (found.name, found.part.sensor) == ("the-item", sensors.get("sentinel-2-l2a"))
    assert [(f.href, f.bands, f.numbers, f.nodata) for f in found.part.files] == [
        (str(tmp_path / f"{band}.tif"), (band,), (1,), 0) for band in L2A
    ]
    assert found.classes == {"SCL": (str(tmp_path / "SCL.tif"), 1)}
    assert found.warnings == ()


def test_of_several_resolutions_the_one_the_instrument_measured_is_taken(tmp_path):
    """Like the Copernicus Data Space, STAC 1.1."""
    assets = {}
    for band in ("B02", "B05", "B01"):
        for gsd in (10, 20, 60):
            if gsd >= GSD[band] or band == "B01":
                said = {"name": band, "eo:common_name": "blue"}
                assets[f"{band}_{gsd}m"] = {
                    "href": f"https://a.example/{band}_{gsd}m.jp2", "type": "image/jp2", "gsd": gsd, "bands": [said],
                    "nodata": 0, "data_type": "uint16", "raster:scale": 0.0001, "raster:offset": -0.1,
                }  # fmt: skip
    assets["SCL_20m"] = {"href": "https://eodata.example/SCL_20m.jp2", "type": "image/jp2", "gsd": 20}
    path = write_item(
        tmp_path, assets, "sentinel-2-l2a", "1.1.0", platform="sentinel-2a", **{"processing:version": "05.11"}
    )
    found = read_item(path)
    assert [f.href.rsplit("/", 1)[1] for f in found.part.files] == ["B01_60m.jp2", "B02_10m.jp2", "B05_20m.jp2"]
    assert found.part.scaling.offset == (-0.1,) * 3
    assert found.part.scaling.scale == (1e-4,) * 3
    assert found.part.scaling.physical_source == "file"
    assert "SCL" in found.classes
    assert found.warnings[0].startswith("bands-left-out: the-item: it has no assets of B03, B04")


@pytest.mark.parametrize(("collection", "platform"), [("landsat-c2-l2", "landsat-8"), ("landsat-c2l2-sr", "LANDSAT_8")])
def test_a_landsat_item_gives_surface_reflectance_and_the_quality_bits(tmp_path, collection, platform):
    names = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
    assets = {
        key: {
            "href": f"https://example/LC08_SR_B{i}.TIF", "type": COG, "roles": ["data"],
            "eo:bands": [{"name": f"OLI_B{i}", "common_name": key}],
            "raster:bands": [{"nodata": 0, "scale": 2.75e-05, "offset": -0.2, "data_type": "uint16"}],
        }
        for i, key in enumerate(names, 1)
    }  # fmt: skip
    assets["lwir11"] = {"href": "https://example/LC08_ST_B10.TIF", "type": COG, "eo:bands": [{"name": "TIRS_B10"}]}
    assets["qa_pixel"] = {"href": "https://example/LC08_QA_PIXEL.TIF", "type": COG, "roles": ["cloud"]}
    assets["qa_radsat"] = {"href": "https://example/LC08_QA_RADSAT.TIF", "type": COG}
    found = read_item(write_item(tmp_path, assets, collection, platform=platform))
    assert found.part.sensor.name == "landsat-8-l2-sr"
    assert found.part.sensor.band_names == tuple(f"B{i}" for i in range(1, 8))
    assert (found.part.scaling.scale[0], found.part.scaling.offset[0]) == (2.75e-5, -0.2)
    assert found.classes == {"QA_PIXEL": ("https://example/LC08_QA_PIXEL.TIF", 1)}


def test_one_asset_with_several_bands_is_one_file(tmp_path):
    bands = [{"name": n, "common_name": n.lower()} for n in ("Red", "Green", "Blue", "NIR")]
    assets = {"image": {"href": "https://naip.example/m.tif", "type": COG, "roles": ["data"], "eo:bands": bands}}
    found = read_item(write_item(tmp_path, assets, "naip"))
    (file,) = found.part.files
    assert (found.part.sensor.name, file.bands, file.numbers) == ("naip-rgbn", ("R", "G", "B", "NIR"), (1, 2, 3, 4))


def test_radar_assets_are_named_by_their_keys(tmp_path):
    said = {"type": COG, "roles": ["data"], "raster:bands": [{"nodata": -32768, "data_type": "float32"}]}
    assets = {key: {**said, "href": f"https://example/{key}.tif"} for key in ("vh", "vv")}
    assets["rendered_preview"] = {"href": "https://example/preview.png", "type": "image/png", "roles": ["overview"]}
    found = read_item(write_item(tmp_path, assets, "sentinel-1-rtc", platform="SENTINEL-1A"))
    assert (found.part.sensor.name, found.part.sensor.band_names) == ("sentinel-1-rtc", ("VV", "VH"))
    assert [f.nodata for f in found.part.files] == [-32768, -32768]


@pytest.mark.parametrize("collection", ["hls2-s30", "HLSS30.v2.0", "HLSS30_2.0"])
def test_harmonised_items_keep_their_class_band(tmp_path, collection):
    stem = "https://example/HLS.S30.T33UXP.2023.v2.0"
    assets = {b: {"href": f"{stem}.{b}.tif", "type": COG} for b in ("B02", "B8A", "Fmask", "SZA")}
    found = read_item(write_item(tmp_path, assets, collection))
    assert (found.part.sensor.name, found.part.sensor.band_names) == ("hls-s30", ("B02", "B8A"))
    assert list(found.classes) == ["Fmask"]


def test_an_unknown_instrument_is_made_of_its_wavelengths(tmp_path):
    bands = [
        {"name": f"b{i}", "eo:center_wavelength": w, "eo:full_width_half_max": 0.01, "unit": "W m-2 sr-1 um-1"}
        for i, w in enumerate((0.45, 0.55, 2.2))
    ]
    assets = {"ortho": {"href": "https://example/cube.tif", "type": COG, "gsd": 30, "bands": bands}}
    found = read_item(write_item(tmp_path, assets, "tanager", "1.1.0"))
    assert found.part.sensor.name == "custom"
    assert [b.wavelength_um for b in found.part.sensor.bands] == [0.45, 0.55, 2.2]
    assert (found.part.sensor.gsd_m, found.part.files[0].numbers) == (30, (1, 2, 3))
    bands[2].pop("unit")
    with pytest.raises(DofaError, match=r"the-item.* unit|the-item: nothing says what its numbers mean"):
        read_item(write_item(tmp_path, {"ortho": {**assets["ortho"], "bands": [{**b, "unit": ""} for b in bands]}}))


def test_what_the_item_does_not_tell_is_asked_for_with_the_candidates(tmp_path):
    plain = {k: {"href": f"https://example/{k}.tif", "type": COG} for k in ("B02", "B03", "B04", "scl")}
    with pytest.raises(
        DataError, match=r"collection None, platform None is no product we know.*B02, B03.*name the sensor"
    ):
        read_item(write_item(tmp_path, plain))
    with pytest.raises(DataError, match="it may be sentinel-2-dofa9 or sentinel-2-l1c or sentinel-2-l2a: say which"):
        read_item(write_item(tmp_path, plain, constellation="sentinel-2"))
    found = read_item(write_item(tmp_path, plain, constellation="sentinel-2"), sensors.get("sentinel-2-l2a"))
    assert found.part.sensor.band_names == ("B02", "B03", "B04")
    twins = {**plain, "B02_other": plain["B02"] | {"href": "https://example/other.tif", "eo:bands": [{"name": "B02"}]}}
    with pytest.raises(DataError, match="assets B02, B02_other hold B02 of sentinel-2-l2a alike: open the files"):
        read_item(write_item(tmp_path, twins, "sentinel-2-l2a"))
    with pytest.raises(DataError, match=r"none of its assets \(B02, B03, B04, scl\) is a band of naip-rgb"):
        read_item(write_item(tmp_path, plain), sensors.get("naip-rgb"))
    far = {"B02": {**plain["B02"], "eo:bands": [{"name": "B02", "center_wavelength": 560}]}}
    with pytest.raises(
        DataError, match=r"asset B02 is named as B02 of sentinel-2-l2a, at 0.4924 µm, and lies at 0.56 µm"
    ):
        read_item(write_item(tmp_path, far, "sentinel-2-l2a"))


# -- the Sentinel-2 offset --------------------------------------------------------------------------------------------

APPLIED, BASELINE = "earthsearch:boa_offset_applied", "s2:processing_baseline"


@pytest.mark.parametrize(
    ("properties", "band", "offset"),
    [
        ({APPLIED: True, BASELINE: "05.09"}, {"scale": 1e-4, "offset": -0.1}, 0.0),  # the flag is right, not the band
        ({APPLIED: False, BASELINE: "05.09"}, {"scale": 1e-4, "offset": -0.1}, -0.1),
        ({APPLIED: False, BASELINE: "05.09"}, {}, -0.1),
        ({APPLIED: False, BASELINE: "02.14"}, {"scale": 1e-4, "offset": -0.1}, 0.0),  # there was none then
        ({BASELINE: "03.01"}, {}, 0.0),
        ({"sentinel:boa_offset_applied": True, "sentinel:processing_baseline": "04.00"}, {}, 0.0),
        ({"processing:version": "05.11"}, {"scale": 1e-4, "offset": -0.1}, -0.1),
        ({BASELINE: "05.09"}, {"scale": 1e-4, "offset": 0}, 0.0),  # said, so no doubt
        ({}, {"scale": 1e-4, "offset": -0.1}, -0.1),
        ({BASELINE: "05.10"}, {}, None),  # Planetary Computer: not a word
        ({BASELINE: "05.10"}, {"scale": 1e-4}, None),
        ({}, {}, None),
    ],
)
def test_the_offset_is_what_the_item_says_and_nothing_else(tmp_path, properties, band, offset):
    assets = {
        b: {"href": f"./{b}.tif", "type": COG, "raster:bands": [{"data_type": "uint16", **band}]}
        for b in ("B02", "B08")
    }
    found = read_item(write_item(tmp_path, assets, "sentinel-2-l2a", **properties))
    assert found.part.scaling.offset == pytest.approx((offset or 0.0,) * 2)
    assert found.part.scaling.scale == (1e-4,) * 2
    assert found.settled is not None
    assert found.settled.offset_open == (offset is None)


def write_bands(folder, low=200):
    """Files for the item of `earth_search`, 1200 m wide; gives the numbers by band."""
    rng, out = np.random.default_rng(0), {}
    for band in L2A:
        side = 1200 // int(GSD[band])
        out[band] = rng.integers(low, 4000, (1, side, side)).astype("uint16")
        place = {"transform": rasterio_origin(GSD[band])}
        write_tiff(folder / f"{band}.tif", out[band], nodata=0, **place)
    scl = np.full((1, 60, 60), 4, "uint8")
    scl[:, :30] = 9
    write_tiff(folder / "SCL.tif", scl, transform=rasterio_origin(20))
    return out


def rasterio_origin(gsd):
    from rasterio.transform import from_origin

    return from_origin(500000, 5000000, gsd, gsd)


def test_a_scene_of_an_item_lies_on_one_grid_with_its_clouds_left_out(tmp_path):
    numbers = write_bands(tmp_path)
    path = earth_search(tmp_path, **{APPLIED: True, BASELINE: "05.09"})
    with open_scene(path, mask="SCL", strict=True) as scene:
        assert (scene.width, scene.height, scene.gsd_m, scene.warnings) == (120, 120, 10, [])
        physical, valid = scene.read_physical(Window(0, 0, 120, 120))
        assert not valid[:60].any()
        assert valid[60:].all()
        assert physical[L2A.index("B08")][60:] == pytest.approx(numbers["B08"][0, 60:] * 1e-4)
    with open_scene(path, bands=["B08", "B04"]) as scene:
        assert scene.sensor.band_names == ("B08", "B04")
        assert scene.read(Window(3, 5, 7, 9))[0][0] == pytest.approx(
            np.concatenate([numbers["B08"], numbers["B04"]])[:, 3:10, 5:14]
        )


def test_a_scene_of_an_item_and_its_file_are_named_by_its_id(tmp_path):
    """Every item of a catalogue is an item.json; its id is any text, and no path."""
    write_bands(tmp_path)
    path = earth_search(tmp_path, **{APPLIED: True, BASELINE: "05.09"})
    path.write_text(path.read_text().replace("the-item", "../S2B.v1/the item.tif"))
    with open_scene(path) as scene:
        assert scene.name == "../S2B.v1/the item.tif"
    paths = output_paths([scene.name, "HLS.S30.T10TEK.v2.0.tif", "c.SAFE"], tmp_path / "out", None)
    assert [p.name for p in paths] == ["_S2B.v1_the_item.tif", "HLS.S30.T10TEK.v2.0.tif", "c.tif"]
    assert {p.parent for p in paths} == {tmp_path / "out"}


def test_an_offset_that_nobody_speaks_of_or_that_was_taken_off_before_is_told_and_an_error_under_strict(tmp_path):
    write_bands(tmp_path)
    wrong = earth_search(tmp_path, **{APPLIED: False, BASELINE: "05.09"})  # the numbers are free of it
    with open_scene(wrong) as scene:
        assert [w.split(":")[0] for w in scene.warnings] == ["offset-doubtful"]
    with pytest.raises(DataError, match=r"taken off a second time: say --dn-offset 0.*strict"):
        open_scene(wrong, strict=True)
    with open_scene(wrong, dn_offset=0, strict=True) as scene:
        assert scene.parts[0].scaling.offset == (0.0,) * 12
    write_bands(tmp_path, low=1200)
    right = earth_search(tmp_path, **{APPLIED: False, BASELINE: "05.09"})
    with open_scene(right, strict=True) as scene:
        assert scene.parts[0].scaling.offset == pytest.approx((-0.1,) * 12)
    data = json.loads(right.read_text())
    del data["properties"][APPLIED]
    for asset in data["assets"].values():
        asset.pop("raster:bands", None)
    right.write_text(json.dumps(data))
    with open_scene(right) as scene:
        assert "processing baseline 05.09 adds 1000 to every number, unless" in scene.warnings[0]


# -- files and documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("href", ["../secret.tif", "a/../../secret.tif", "link/secret.tif", "ftp://host/x.tif"])
def test_a_relative_path_stays_in_the_items_folder(tmp_path, href):
    inside = tmp_path / "item"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path)
    path = write_item(inside, {"B02": {"href": href, "type": COG}}, "sentinel-2-l2a")
    with pytest.raises(DataError, match=r"the-item: asset .*(leads out of the folder|addresses begin with)"):
        read_item(path)


@pytest.mark.parametrize(
    ("href", "opened"),
    [
        ("deeper/B02.tif", "{folder}/deeper/B02.tif"),
        ("./B02.tif", "{folder}/B02.tif"),
        ("/data/B02.tif", "/data/B02.tif"),
        ("file:///data/a%20b.tif", "/data/a b.tif"),
        ("https://host/B02.tif?sig=1", "https://host/B02.tif?sig=1"),
        ("s3://bucket/B02.tif", "s3://bucket/B02.tif"),
    ],
)
def test_whole_paths_and_addresses_are_taken_as_they_are(tmp_path, href, opened):
    path = write_item(tmp_path, {"B02": {"href": href, "type": COG}}, "sentinel-2-l2a")
    assert read_item(path).part.files[0].href == opened.format(folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "item.json is no JSON, or was cut off"),
        ("[]", "item.json is no STAC item: it has no assets"),
        ('{"type": "Collection", "assets": {}}', "is a STAC collection: name one of its items"),
        ('{"type": "Feature", "properties": {}}', "is no STAC item: it has no assets"),
        ('{"type": "Feature", "properties": [], "assets": {}}', "its properties are no object"),
        ('{"type": "Feature", "assets": {"a": "b"}}', "it has no assets"),
        (
            '{"type": "FeatureCollection", "features": [{"id": "a"}, {"id": "b"}]}',
            r"holds 2 items \(a, b …\): save the one",
        ),
        ("[" * 100_000, "item.json is nested"),
    ],
)
def test_a_document_that_is_no_item_says_what_it_is(tmp_path, text, says):
    path = tmp_path / "item.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read_item(path)
    assert "\n" not in str(caught.value)


def test_a_search_answer_with_one_item_is_that_item_and_no_file_is_an_error(tmp_path):
    one = json.loads(earth_search(tmp_path, **{APPLIED: True}).read_text())
    path = tmp_path / "search.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [one]}))
    assert read_item(path).name == "the-item"
    with pytest.raises(DataError, match=r"none.json cannot be read: No such file"):
        read_item(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("x.json", True),
        ("X.GEOJSON", True),
        ("https://host/a.json?token=1", True),
        ("https://earth-search.example/v1/collections/sentinel-2-l2a/items/S2B_33UXP_20230302_0_L2A", True),
        ("https://host/items/x.tif", False),
        ("x.tif", False),
        ("items/x", False),
    ],
)
def test_items_are_told_by_their_names(source, answer):
    assert is_item(source) is answer


@settings(max_examples=60, deadline=None)
@given(
    junk=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
            ["href", "type", "roles", "eo:bands", "raster:bands", "bands", "name", "scale", "nodata", "gsd"]), inner),
        max_leaves=12,
    )
)  # fmt: skip
def test_whatever_an_asset_holds_the_answer_is_an_item_or_one_clear_line(tmp_path_factory, junk):
    folder = tmp_path_factory.mktemp("junk")
    good = {"href": "./B02.tif", "type": COG}
    assets = {"B02": good, "B03": {**good, **junk} if isinstance(junk, dict) else {**good, "eo:bands": junk}}
    path = write_item(folder, assets, "sentinel-2-l2a")
    try:
        bands = read_item(path).part.sensor.band_names
    except DofaError as error:
        bands = (str(error),)
    assert "B02" in bands or ("item" in bands[0] and "\n" not in bands[0])
