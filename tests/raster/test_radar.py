"""Backscatter in decibels, decibels × 100 or linear power, under whichever of the sensors' names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa import sensors
from dofa.errors import DataError
from dofa.raster.factors import backscatter

SENSORS = ("sentinel-1-grd", "sentinel-1-rtc", "alos-2-gamma0")


def decibels(vv, spread, seed):
    """(2, 40, 40) of ground: the second polarisation six decibels below, speckle on both."""
    rng = np.random.default_rng(seed)
    return np.stack([vv + spread * rng.normal(size=(40, 40)), vv - 6 + spread * rng.normal(size=(40, 40))])


@given(
    vv=st.floats(-22, -4), spread=st.floats(0.5, 4), seed=st.integers(0, 99), sensor=st.sampled_from(SENSORS),
    stored=st.sampled_from(["db", "db float64", "× 100", "power", "power with noise"]),
)  # fmt: skip
def test_backscatter_is_what_its_values_can_be_whatever_the_sensor_has(vv, spread, seed, sensor, stored):
    truth = decibels(vv, spread, seed)
    raw = {
        "db": truth.astype("f4"),
        "db float64": truth,
        "× 100": np.rint(truth * 100).astype("i2"),
        "power": (10 ** (truth / 10)).astype("f4"),
        "power with noise": (10 ** (truth / 10)).astype("f4"),
    }[stored]
    if stored == "power with noise":
        raw.flat[:5] = np.nan, -0.002, 0, 30, -0.001
    product = sensors.get(sensor).scaling
    scaling, said = backscatter(product, sensor, raw, by_tag=False)
    assert scaling.unit == ("linear_power" if stored.startswith("power") else "db")
    assert scaling.scale[0] == (0.01 if stored == "× 100" else 1)
    assert (said is None) == (scaling.unit == product.unit and stored != "× 100")
    physical = scaling.physical(raw)
    found = 10 * np.log10(np.maximum(physical, 1e-9)) if scaling.unit == "linear_power" else physical
    assert np.allclose(found.reshape(-1)[5:], truth.reshape(-1)[5:], atol=0.02)


@pytest.mark.parametrize(
    "raw",
    [
        np.random.default_rng(0).integers(20, 900, (2, 40, 40)).astype("u2"),  # digital numbers of a GRD
        np.random.default_rng(0).integers(0, 255, (2, 40, 40)).astype("u1"),  # a picture
        np.full((2, 0), 1.0),
    ],
)
def test_what_is_neither_stays_what_the_product_has(raw):
    product = sensors.get("sentinel-1-grd").scaling
    assert backscatter(product, "sentinel-1-grd", raw, by_tag=False) == (product.without_stats(), None)


@pytest.mark.parametrize("name", ["sentinel-1-grd", "sentinel-1-rtc"])
def test_a_scene_in_another_unit_than_its_product_is_read_right_and_said(tmp_path, name):
    rasterio = pytest.importorskip("rasterio")
    from dofa.scene.scene import Window, open_scene

    truth = decibels(-11, 3, 0)
    for at, raw in enumerate(
        (truth.astype("f4"), np.rint(truth * 100).astype("i2"), (10 ** (truth / 10)).astype("f4"))
    ):
        path = tmp_path / f"{at}.tif"
        with rasterio.open(path, "w", driver="GTiff", width=40, height=40, count=2, dtype=raw.dtype) as out:
            out.write(raw)
            out.descriptions = ("VV", "VH")
        with open_scene(path, name) as scene:
            values, _ = scene.read_physical(Window(0, 0, 40, 40))
            (part,) = scene.parts
            found = values if part.scaling.unit == "db" else 10 * np.log10(values)
            assert np.allclose(found, truth, atol=0.02)
            plain = (part.scaling.unit, part.scaling.scale[0]) == (sensors.get(name).scaling.unit, 1)
            assert any(w.startswith("unit-assumed") for w in scene.warnings) == (not plain)
        if not plain:
            with pytest.raises(DataError, match=f"{at}.tif: .*--unit"):
                open_scene(path, name, strict=True)
        unit = "linear_power" if raw.dtype.kind == "f" and raw.min() >= 0 else "db"
        scale = 0.01 if raw.dtype.kind == "i" else None
        with open_scene(path, name, unit=unit, dn_scale=scale, strict=True) as told:
            assert told.parts[0].scaling.unit == unit


def test_a_file_that_says_decibels_is_not_doubted(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from dofa.raster import open_raster

    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=40, height=40, count=2, dtype="float32") as out:
        out.write(decibels(-11, 3, 0).astype("f4"))
        out.descriptions, out.units = ("VV", "VH"), ("dB", "dB")
    with open_raster(tmp_path / "a.tif", "sentinel-1-rtc") as raster:
        assert raster.scaling.unit == "db"
        assert not [w for w in raster.warnings if w.startswith(("unit-assumed", "scale"))]


@pytest.mark.parametrize("kind", ["uint16", "float32"])
@pytest.mark.parametrize("told", [{}, {"unit": "linear_power"}])
def test_counts_before_calibration_are_told_so_and_refused_as_power_too(tmp_path, kind, told):
    rasterio = pytest.importorskip("rasterio")
    from dofa.inference.value_checks import out_of_unit
    from dofa.raster import open_raster

    counts = (10 ** (decibels(-11, 3, 0) / 20) * 500).astype(kind)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=40, height=40, count=2, dtype=kind) as out:
        out.write(counts)
        out.descriptions = ("Amplitude_VV", "Amplitude_VH")
    with open_raster(tmp_path / "a.tif", "sentinel-1-grd", **told) as raster:
        text = " ".join(raster.warnings)
        assert told or ("counts" in text and "calibrate" in text and "--unit linear_power" not in text)
        assert set(out_of_unit(raster.scaling, raster.read()[0].reshape(2, -1))) == {"VV", "VH"}
