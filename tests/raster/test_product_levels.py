"""Products whose names say another level than the sensor: Planet's radiance, Landsat's and Sentinel-2's levels."""

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

from rasterio.transform import from_origin  # noqa: E402

from dofa import sensors  # noqa: E402
from dofa.errors import DataError  # noqa: E402
from dofa.raster import open_raster  # noqa: E402
from dofa.raster.planet import ANALYTIC  # noqa: E402
from dofa.scene.scene import open_scene  # noqa: E402

COEFFICIENTS = (2.2e-5, 2.4e-5, 2.7e-5, 4.1e-5, 1.9e-5, 2.1e-5, 2.3e-5, 2.5e-5)
XML = """<?xml version="1.0" encoding="UTF-8"?>
<ps:EarthObservation xmlns:ps="http://schemas.planet.com/ps/v1/planet_product_metadata_geocorrected_level"
 xmlns:gml="http://www.opengis.net/gml"><gml:resultOf><ps:EarthObservationResult>{bands}
</ps:EarthObservationResult></gml:resultOf></ps:EarthObservation>"""
BAND = """<ps:bandSpecificMetadata><ps:bandNumber>{n}</ps:bandNumber>
<ps:radiometricScaleFactor>0.01</ps:radiometricScaleFactor>
<ps:reflectanceCoefficient>{c}</ps:reflectanceCoefficient></ps:bandSpecificMetadata>"""


def write(path, count=4, *, tags=None, names=None, low=900, high=9000):
    counts = np.random.default_rng(0).integers(low, high, (count, 40, 40)).astype("uint16")
    place = {"crs": "EPSG:32633", "transform": from_origin(5e5, 4e6, 3, 3)}
    with rasterio.open(path, "w", driver="GTiff", count=count, height=40, width=40, dtype="uint16", **place) as file:
        file.write(counts)
        if names:
            file.descriptions = names
        file.update_tags(**(tags or {}))
    return path, counts


def side_file(path, count=4, order=None):
    bands = [BAND.format(n=n + 1, c=COEFFICIENTS[n]) for n in (order or range(count))]
    path.write_text(XML.format(bands="\n".join(bands)), encoding="utf-8")


# -- Planet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "radiance"),
    [
        ("20240601_100031_45_2440_3B_AnalyticMS.tif", True),
        ("20240601_100031_45_2440_3B_AnalyticMS_8b.tif", True),
        ("20240601_100031_45_2440_3B_AnalyticMS_clip.tif", True),
        ("20240601_100031_45_2440_3B_AnalyticMS_8b_clip.tif", True),
        ("20240601_100031_45_2440_3B_AnalyticMS_DN.tif", True),
        ("20170601_100031_0e0f_3B_Analytic.tif", True),
        ("20240601_100031_45_2440_1B_AnalyticMS.tif", True),
        ("20240601_100031_45_2440_3B_AnalyticMS_SR.tif", False),
        ("20240601_100031_45_2440_3B_AnalyticMS_SR_8b_clip.tif", False),
        ("20240601_100031_45_2440_3B_AnalyticMS_SR_8b_harmonized_clip.tif", False),
        ("20240601_100031_45_2440_3B_AnalyticMS_8b_SR.tif", False),
        ("my_scene.tif", False),
        ("analytics.tif", False),
    ],
)
def test_analytic_products_without_sr_are_radiance(tmp_path, name, radiance):
    assert (ANALYTIC.search(name) is not None) == radiance
    path, counts = write(tmp_path / name, names=["blue", "green", "red", "nir"])
    with open_raster(path, "planetscope-4") as r:
        said = [w for w in r.warnings if w.startswith("radiance: ")]
        assert (r.scaling.unit, len(said)) == (("radiance", 1) if radiance else ("reflectance", 0))
        assert np.allclose(r.read_physical()[0], counts * (0.01 if radiance else 1e-4), rtol=1e-5)
    if radiance:
        with pytest.raises(DataError, match="radiance is an error under strict"):
            open_raster(path, "planetscope-4", strict=True)
        with open_raster(path, "planetscope-4", unit="dn") as r:
            assert r.scaling.unit == "reflectance"
            assert not any(w.startswith("radiance") for w in r.warnings)


def test_a_renamed_file_keeps_planets_tag(tmp_path):
    for said, unit in (("null", "radiance"), ('{"aerosol_model": "continental"}', "reflectance")):
        tags = {"TIFFTAG_IMAGEDESCRIPTION": f'{{"atmospheric_correction": {said}}}'}
        path, _ = write(tmp_path / f"{unit}.tif", tags=tags)
        with open_raster(path, "planetscope-4") as r:
            assert r.scaling.unit == unit


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("a_3B_AnalyticMS.tif", "a_3B_AnalyticMS_metadata.xml", 4),
        ("a_3B_AnalyticMS_8b.tif", "a_3B_AnalyticMS_8b_metadata.xml", 8),
        ("a_3B_AnalyticMS_clip.tif", "a_3B_AnalyticMS_metadata_clip.xml", 4),
        ("a_3B_AnalyticMS_clip.tif", "a_3B_AnalyticMS_metadata.xml", 4),
        ("a_3B_AnalyticMS.tif", "A_3B_ANALYTICMS_METADATA.XML", 4),
    ],
)
def test_with_the_xml_file_beside_it_radiance_becomes_reflectance(tmp_path, name, side, count):
    path, counts = write(tmp_path / name, count)
    side_file(tmp_path / side, count, order=list(reversed(range(count))))
    sensor = f"planetscope-{count}"
    with open_raster(path, sensor) as r:
        assert r.scaling.unit == "reflectance"
        expected = counts * np.array(COEFFICIENTS[:count])[:, None, None]
        assert np.allclose(r.read_physical()[0], expected, rtol=1e-5)
        (said,) = [w for w in r.warnings if w.startswith("toa-reflectance")]
        assert side in said


def test_bands_in_another_order_take_their_own_coefficients(tmp_path):
    path, counts = write(tmp_path / "a_3B_AnalyticMS.tif", names=["nir", "red", "green", "blue"])
    side_file(tmp_path / "a_3B_AnalyticMS_metadata.xml")
    with open_raster(path, "planetscope-4", bands=["blue", None, None, "nir"]) as r:
        assert np.allclose(r.read_physical()[0][1], counts[3] * COEFFICIENTS[3], rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "no xml at all",
        '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
        XML.format(bands=BAND.format(n=1, c="nan")),
        XML.format(bands=BAND.format(n=1, c="many")),
        XML.format(bands=BAND.format(n="one", c="2e-5")),
    ],
)
def test_a_damaged_xml_file_is_one_line(tmp_path, text):
    path, _ = write(tmp_path / "a_3B_AnalyticMS.tif")
    (tmp_path / "a_3B_AnalyticMS_metadata.xml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.xml") as caught:
        open_raster(path, "planetscope-4")
    assert "\n" not in str(caught.value)


def test_an_xml_file_without_coefficients_for_all_bands_leaves_radiance(tmp_path):
    path, counts = write(tmp_path / "a_3B_AnalyticMS.tif")
    side_file(tmp_path / "a_3B_AnalyticMS_metadata.xml", 2)
    with open_raster(path, "planetscope-4") as r:
        assert r.scaling.unit == "radiance"
        assert np.allclose(r.read_physical()[0], counts * 0.01, rtol=1e-5)


def test_another_sensors_file_of_that_name_is_its_own(tmp_path):
    path, _ = write(tmp_path / "a_3B_AnalyticMS.tif", names=["B02", "B03", "B04", "B08"])
    with open_raster(path, "sentinel-2-l2a", dn_offset=0) as r:
        assert r.scaling.unit == "reflectance"


# -- levels in names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sensor", "doubted"),
    [
        ("LC08_L1TP_227065_20200608_20200824_02_T1.tif", "landsat-8-l2-sr", True),
        ("LC08_L2SP_227065_20200608_20200824_02_T1.tif", "landsat-8-l1-toa", True),
        ("LC08_L2SP_227065_20200608_20200824_02_T1.tif", "landsat-8-l2-sr", False),
        ("LT05_L1TP_227065_19900608_20200824_02_T1.tif", "landsat-5-l2-sr", True),
        ("S2A_MSIL1C_20240601T100031_N0510_R122_T33UUU_20240601T120000.tif", "sentinel-2-l2a", True),
        ("S2A_MSIL2A_20240601T100031_N0510_R122_T33UUU_20240601T120000.tif", "sentinel-2-l2a", False),
        ("S2A_MSIL2A_20240601T100031_N0510_R122_T33UUU_20240601T120000.tif", "naip-rgbn", False),
        ("scene.tif", "sentinel-2-l2a", False),
    ],
)
def test_a_name_of_another_level_is_a_doubt(tmp_path, name, sensor, doubted):
    names = list(sensors.get(sensor).band_names[:4])
    path, _ = write(tmp_path / name, names=names, low=8000, high=14000)
    with open_scene(path, sensor, dn_offset=None) as scene:
        assert any(w.startswith("level-by-name: ") for w in scene.warnings) == doubted
    if doubted:
        with pytest.raises(DataError, match="level-by-name is an error under strict"):
            open_scene(path, sensor, strict=True)


@pytest.mark.parametrize(
    ("name", "told", "known"),
    [
        ("HLS.L30.T33UUP.2023163T100601.v2.0.stack.tif", "hls-s30", "hls-l30"),
        ("LC08_L2SP_1.tif", "landsat-9-l2-sr", "8"),
    ],
)
def test_a_name_of_another_instrument_is_doubted_where_its_bands_have_the_same_names(tmp_path, name, told, known):
    path, _ = write(tmp_path / name, 6, names=["B02", "B03", "B04", "B05", "B06", "B07"], low=8000, high=9000)
    with open_scene(path, told) as scene:
        assert any(w.startswith("level-by-name") and known in w for w in scene.warnings)
    with pytest.raises(DataError, match=known):
        open_scene(path, told, strict=True)
