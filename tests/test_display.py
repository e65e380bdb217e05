"""Physical values as pictures in [0, 1]: known values, and statistics that make a model's input a teacher's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dofa.errors import ConfigError
from dofa.pixels import IMAGENET_MEAN, IMAGENET_STD, Scaling, display_map, display_statistics, show


def scaling(unit: str, bands: int = 1, **changes: object) -> Scaling:
    names = [f"b{i}" for i in range(bands)]
    return Scaling.uniform(unit, names, **changes).with_stats([0.3] * bands, [0.2] * bands, "corpus")


def shown(unit: str, wavelength: float | None, polarisation: str | None, value: float) -> float:
    """What one physical value looks like, through the normalisation it arrives in."""
    of = scaling(unit)
    image = of.normalise_physical(np.full((1, 2, 2), value, np.float32))
    picture = show(image, of, [display_map(unit, wavelength, polarisation)])
    assert picture.dtype == np.float32
    assert (picture == picture[0, 0, 0]).all()
    return float(picture[0, 0, 0])


@pytest.mark.parametrize(
    ("unit", "wavelength", "polarisation", "value", "seen"),
    [
        ("reflectance", 0.56, None, 0.3558, 1),
        ("reflectance", 0.6646, None, 0.1779, 0.5),
        ("reflectance", 0.49, None, 0.0, 0),
        ("reflectance", 0.8328, None, 0.5, 1),
        ("reflectance", 1.61, None, 0.25, 0.5),
        ("db", None, "VV", -25, 0),
        ("db", None, "HH", 0, 1),
        ("db", None, "VV", -12.5, 0.5),
        ("db", None, "VH", -32, 0),
        ("db", None, "HV", -7, 1),
        ("uint8", 0.66, None, 0, 0),
        ("uint8", 0.66, None, 127.5, 0.5),
        ("uint8", None, "VV", 255, 1),
        ("kelvin", 10.9, None, 290, 0.5),
    ],
)
def test_a_known_value_has_its_grey(unit, wavelength, polarisation, value, seen):
    assert shown(unit, wavelength, polarisation, value) == pytest.approx(seen, abs=1e-5)


@pytest.mark.parametrize(("unit", "wavelength", "polarisation"), [("reflectance", 0.5, None), ("db", None, "VH")])
def test_what_lies_outside_the_range_is_black_or_white(unit, wavelength, polarisation):
    assert shown(unit, wavelength, polarisation, -90) == 0
    assert shown(unit, wavelength, polarisation, 90) == 1


@pytest.mark.parametrize(
    ("unit", "wavelength"), [("dn", 0.5), ("radiance", 0.5), ("linear_power", None), ("reflectance", None)]
)
def test_values_in_a_unit_nobody_can_show_are_refused_in_one_line(unit, wavelength):
    with pytest.raises(ConfigError, match=f"no display map for values in {unit}: .*distill.input=sensor") as caught:
        display_map(unit, wavelength, None)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_display_statistics_make_a_models_input_what_the_teacher_makes_of_the_picture(data):
    numbers = st.floats(0.1, 0.9)
    mean = data.draw(st.sampled_from([IMAGENET_MEAN, (0.5, 0.5, 0.5)]) | st.tuples(numbers, numbers, numbers))
    std = data.draw(st.sampled_from([IMAGENET_STD, (0.5, 0.5, 0.5)]) | st.tuples(numbers, numbers, numbers))
    wavelengths = {"reflectance": (0.49, 0.56, 0.665), "uint8": (0.456, 0.56, 0.634)}
    unit = data.draw(st.sampled_from(sorted(wavelengths)))
    maps = [display_map(unit, w, None) for w in wavelengths[unit]]
    colours = (2, 1, 0)  # stored as blue, green, red
    of = display_statistics(scaling(unit, 3), maps, colours, mean, std)
    assert of.stats_source == "display"
    # From black to white; beyond, the picture is cut and the input is not.
    grey = np.linspace(0, 1, 25, dtype=np.float32).reshape(5, 5)
    physical = np.stack([m.low + (m.high - m.low) * grey for m in maps]).astype(np.float32)
    mine = of.normalise_physical(physical)
    teachers = (show(mine, of, maps) - np.take(mean, colours)[:, None, None]) / np.take(std, colours)[:, None, None]
    np.testing.assert_allclose(mine, teachers, atol=2e-6 / min(std))


def test_bands_that_are_no_colour_get_the_mean_of_the_three():
    maps = [display_map("reflectance", w, None) for w in (0.665, 0.8328)]
    of = display_statistics(scaling("reflectance", 2), maps, (0, None))
    assert of.mean == pytest.approx((0.3558 * 0.485, 0.5 * sum(IMAGENET_MEAN) / 3))
    assert of.std == pytest.approx((0.3558 * 0.229, 0.5 * sum(IMAGENET_STD) / 3))
