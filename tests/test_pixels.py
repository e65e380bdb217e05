"""Scaling, unit maps, running statistics and the precedence of who says what."""

import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dofa import sensors
from dofa.errors import ConfigError, DataError
from dofa.pixels import (
    UNIT_MAPS,
    ConstantBandWarning,
    RunningStats,
    Scaling,
    convert_units,
    resolve_physical,
    resolve_stats,
    unit_path,
)
from dofa.pixels import scaling as scaling_module

BANDS = ("B02", "B03", "B04")


def scaling(**changes):
    plain = {
        "unit": "reflectance",
        "bands": BANDS,
        "scale": (1e-4,) * 3,
        "offset": (-0.1, 0.0, 0.1),
        "clip": (None, (0.0, 1.0), None),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.05, 0.1, 0.2),
        "stats_source": "corpus",
    }
    return Scaling(**{**plain, **changes})


finite = st.floats(-1e3, 1e3, width=32)
spread = st.floats(0.0625, 1e3, width=32)


# -- Scaling ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "float64"]),
    bands=st.integers(1, 40),
    shape=st.sampled_from([(1, 1), (7, 5), (33, 40)]),
    leading=st.sampled_from([(), (2,)]),
    clipped=st.sampled_from(["none", "some", "all"]),
    masked=st.booleans(),
)
def test_bands_a_few_at_a_time_give_the_bits_of_the_formula(data, dtype, bands, shape, leading, clipped, masked):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    raw = rng.integers(0, 250, (*leading, bands, *shape)).astype(dtype)
    raw = raw[..., :: data.draw(st.sampled_from([1, -1]))]
    valid = rng.random((*leading, *shape)) < 0.7 if masked else None
    names = tuple(f"B{i}" for i in range(bands))
    clip = tuple((0.2, 1.7) if clipped == "all" or (clipped == "some" and i % 3) else None for i in range(bands))
    scale, offset, mean = (tuple(map(float, rng.uniform(0.001, 0.01, bands))) for _ in range(3))
    std = (0.0, *map(float, rng.uniform(0.1, 1, bands - 1)))
    one = Scaling("reflectance", names, scale, offset, clip, mean, std, "corpus", "corpus")
    # All bands at once, step by step, as docs/architecture.md has it.
    work = np.float64 if dtype in ("int32", "float64") else np.float32

    def column(values, kind):
        return np.asarray(values, kind)[:, None, None]

    physical = raw.astype(work) * column(scale, work) + column(offset, work)
    limits = [(-np.inf, np.inf) if c is None else c for c in clip]
    physical = np.clip(physical, column([c[0] for c in limits], work), column([c[1] for c in limits], work))
    physical = physical.astype(np.float32)
    inverse = [0.0, *(1 / s for s in std[1:])]
    expected = (physical - column(mean, np.float32)) * column(inverse, np.float32)
    if valid is not None:
        expected = np.where(valid[..., None, :, :], expected, np.float32(0))
    before, block = raw.copy(), scaling_module.BLOCK
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantBandWarning)
        patch.setattr(scaling_module, "BLOCK", data.draw(st.sampled_from([1, 100, block])))
        np.testing.assert_array_equal(one.physical(raw), physical, strict=True)
        got = one.normalise(raw, valid)
        np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32), strict=True)  # the sign of 0 too
        out = np.full(raw.shape, np.nan, np.float32)
        assert one.normalise(raw, valid, out=out) is out
        np.testing.assert_array_equal(out, expected, strict=True)
        np.testing.assert_array_equal(one.normalise_physical(physical, valid), expected, strict=True)
    np.testing.assert_array_equal(raw, before)


def test_normalised_is_clip_of_raw_times_scale_plus_offset_minus_mean_over_std():
    raw = np.array([3000, 20_000, -500], np.int16).reshape(3, 1, 1)
    got = scaling().normalise(raw).ravel()
    assert got == pytest.approx([(0.2 - 0.1) / 0.05, (1.0 - 0.2) / 0.1, (0.05 - 0.3) / 0.2], rel=1e-6)


@given(
    mean=st.tuples(finite, finite, finite),
    std=st.tuples(spread, spread, spread),
    image=hnp.arrays(np.float32, (3, 4, 5), elements=finite),
)
def test_denormalise_undoes_normalise(mean, std, image):
    one = Scaling.uniform("kelvin", BANDS).with_stats(mean, std, "user")
    back = one.denormalise(one.normalise_physical(image))
    assert np.abs(back - image).max() <= 1e-6 * (np.abs(image).max() + max(map(abs, mean)) + 1)


@given(order=st.permutations(range(3)), image=hnp.arrays(np.int16, (3, 2, 2)))
def test_selecting_bands_permutes_every_field_with_them(order, image):
    names = [BANDS[i] for i in order]
    assert np.array_equal(
        scaling().select(names).normalise(image[list(order)]), scaling().normalise(image)[list(order)]
    )


def test_select_of_an_unknown_band_names_it():
    with pytest.raises(ConfigError, match=r"no band B8A; it has B02, B03, B04"):
        scaling().select(["B8A"])


def test_physical_values_given_directly_are_clipped_as_raw_ones_are():
    one = scaling(offset=(0.0, 0.0, 0.0))
    raw = np.full((3, 1, 1), 15_000, np.int16)
    assert np.allclose(one.normalise_physical(raw * np.float32(1e-4)), one.normalise(raw), atol=1e-6)


def test_large_integers_keep_their_digits_before_the_factor():
    one = Scaling.uniform("kelvin", ["T"], scale=1e-6)
    raw = np.array([300_000_001, 300_000_031], np.int32).reshape(1, 1, 2)
    assert np.ptp(one.physical(raw)) == pytest.approx(3e-5, rel=0.05)  # 0 if they passed through float32 first


def test_a_band_without_variance_is_fed_as_zero_and_named_once():
    one = scaling(bands=("dead-1", "B03", "B04"), std=(1e-8, 0.1, 0.2))
    image = np.full((3, 2, 2), 900, np.int16)
    with pytest.warns(ConstantBandWarning, match="dead-1"):
        assert not one.normalise(image)[0].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.normalise(image)
    assert np.allclose(one.denormalise(np.ones((3, 1, 1)))[0], 0.1)


def test_constant_is_judged_against_the_physical_range_of_the_band():
    assert scaling(std=(9e-7, 9e-7, 1.1e-6)).constant == ("B02", "B03")
    assert scaling(clip=((0.0, 0.1), None, None), std=(9e-7, 9e-7, 0.1)).constant == ("B03",)


def test_invalid_pixels_become_zero_and_a_valid_nan_is_an_error():
    image = np.ones((3, 1, 2), np.float32)
    image[1, 0, 0] = np.nan
    valid = np.array([[False, True]])
    assert not scaling().normalise(image, valid)[:, 0, 0].any()
    with pytest.raises(DataError, match="1 values are NaN"):
        scaling().normalise(image)


def test_an_image_with_another_number_of_bands_is_one_clear_line():
    with pytest.raises(DataError, match=r"shape \(4, 2, 2\) does not have the 3 bands B02, B03, B04"):
        scaling().normalise(np.zeros((4, 2, 2)))


def test_a_scaling_without_statistics_names_the_three_cures():
    with pytest.raises(ConfigError, match=r"--stats scene .*--stats dataset .*or a head"):
        scaling(mean=None, std=None, stats_source=None).normalise(np.zeros((3, 1, 1)))


def test_a_scaling_survives_json():
    assert Scaling.from_dict(json.loads(json.dumps(scaling().to_dict()))) == scaling()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unit": "reflectances"}, "known units: reflectance"),
        ({"scale": (1.0,)}, "scale has 1 values for 3 bands"),
        ({"scale": (1.0, 0.0, 1.0)}, "zero or non-finite factor"),
        ({"offset": (0.0, float("nan"), 0.0)}, "non-finite"),
        ({"std": (1.0, -1.0, 1.0)}, "std has a negative"),
        ({"std": None}, "mean and std together"),
        ({"stats_source": None}, "where mean and std come from"),
        ({"stats_source": "guess"}, "source 'guess'"),
        ({"clip": ((1.0, 0.0), None, None)}, r"clip of band B02 is \(1.0, 0.0\)"),
        ({"bands": ("B02", "B02", "B04")}, "names a band twice"),
    ],
)
def test_a_scaling_that_does_not_hold_together_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        scaling(**change)


def test_a_scaling_on_disk_with_a_missing_or_misspelt_key_is_refused():
    plain = scaling().to_dict()
    plain["scales"] = plain.pop("scale")
    with pytest.raises(ConfigError, match=r"unknown key 'scales': did you mean scale"):
        Scaling.from_dict(plain)


# -- RunningStats -----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    image=hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 9)), elements=finite),
    cuts=st.lists(st.integers(0, 54), max_size=4),
    data=st.data(),
)
def test_statistics_of_any_split_are_those_of_the_whole(image, cuts, data):
    valid = data.draw(hnp.arrays(bool, image.shape[1:]))
    flat, keep = image.reshape(2, 1, -1), valid.reshape(1, -1)
    edges = sorted({0, flat.shape[2], *(c for c in cuts if c < flat.shape[2])})
    parts = []
    for a, b in itertools.pairwise(edges):
        part = RunningStats(["a", "b"])
        part.update(flat[:, :, a:b], keep[:, a:b])
        parts.append(RunningStats.from_dict(json.loads(json.dumps(part.to_dict()))))
    total = RunningStats(["a", "b"])
    for part in data.draw(st.permutations(parts)):
        total.merge(part)
    assert total.count == valid.sum()
    if total.count:
        wanted = image[:, valid].astype(float)
        scale = np.abs(wanted).max() + 1e-30
        assert np.abs(total.mean - wanted.mean(axis=1)).max() <= 1e-12 * scale
        assert np.abs(total.std**2 - wanted.var(axis=1)).max() <= 1e-12 * scale**2
        assert np.array_equal(total.minimum, wanted.min(axis=1))
        assert np.array_equal(total.maximum, wanted.max(axis=1))


def test_a_small_variance_on_a_large_mean_is_not_lost():
    rng = np.random.default_rng(0)
    values = (300 + 1e-3 * rng.standard_normal((1, 64, 64))).astype(np.float32)
    stats = RunningStats(["T"])
    for row in values[0]:
        stats.update(row[None, None])
    assert stats.std[0] == pytest.approx(values.astype(float).std(), rel=1e-9)


def test_a_valid_pixel_that_is_not_finite_is_refused_and_nothing_is_taken_in():
    stats = RunningStats(["a", "b"])
    image = np.zeros((2, 1, 3))
    image[1, 0, 2] = np.inf
    with pytest.raises(DataError, match="band b is NaN or infinite"):
        stats.update(image)
    assert stats.count == 0
    stats.update(image, np.array([[True, True, False]]))
    assert stats.count == 2


def test_statistics_without_a_pixel_or_of_other_bands_are_refused():
    with pytest.raises(DataError, match="no valid pixel"):
        _ = RunningStats(["a"]).mean
    with pytest.raises(ConfigError, match="do not merge"):
        RunningStats(["a"]).merge(RunningStats(["b"]))


# -- precedence -------------------------------------------------------------------------------------------------------


def test_physical_values_are_the_users_then_the_files_then_the_products():
    user, file, product = (Scaling.uniform("reflectance", BANDS, scale=s) for s in (1e-3, 1e-4, 1e-5))
    assert resolve_physical(user, file, product).physical_source == "user"
    assert resolve_physical(None, file, product).scale[0] == 1e-4
    assert resolve_physical(None, None, product).physical_source == "catalogue"
    assert resolve_physical(None, None, scaling()).mean is None
    with pytest.raises(ConfigError, match=r"x.tif: .*--unit.*tags into the file.*name a sensor"):
        resolve_physical(None, None, None, "x.tif")


def test_statistics_are_the_heads_then_those_told_then_the_checkpoints_then_the_stores():
    plain = scaling().without_stats()
    head, told, checkpoint, store = (scaling(mean=(m,) * 3) for m in (1.0, 2.0, 3.0, 4.0))
    rest = {"checkpoint": {"s2": checkpoint}, "store": store}

    def answer(**words):
        found = resolve_stats(plain, "s2", **words)
        return found.mean[0], found.stats_source

    assert answer(head=head, **rest) == (1.0, "head")
    assert answer(stats=told.with_stats(told.mean, told.std, "scene"), **rest) == (2.0, "scene")
    assert answer(**rest) == (3.0, "checkpoint")
    assert answer(checkpoint={"other": checkpoint}, store=store) == (4.0, "corpus")
    assert answer(head=head, stats=told, force=True) == (2.0, "corpus")
    with pytest.raises(ConfigError, match="leave out --stats, or force it"):
        answer(head=head, stats=told)


def test_no_statistics_names_what_the_checkpoint_knows_and_the_three_cures():
    with pytest.raises(ConfigError) as error:
        resolve_stats(scaling().without_stats(), "landsat-8", checkpoint={"naip-rgb": scaling(), "x": None})
    assert str(error.value) == (
        "sensor landsat-8 has no statistics in this checkpoint (it knows naip-rgb): pass --stats scene (of scenes) "
        "or --stats dataset (of labelled images), or a head trained on it"
    )


def test_statistics_in_another_unit_or_without_a_band_are_refused():
    with pytest.raises(ConfigError, match=r"in reflectance, its statistics \(checkpoint\) in uint8: convert"):
        resolve_stats(scaling().without_stats(), "s2", checkpoint={"s2": scaling(unit="uint8")})
    with pytest.raises(ConfigError, match="lack band B04"):
        resolve_stats(scaling().without_stats(), "s2", store=scaling().select(["B02", "B03"]))


def test_statistics_bring_the_clip_they_were_measured_with_and_follow_the_bands():
    plain = Scaling.uniform("reflectance", ["B04", "B02"], clip=[(0, 2), None])
    found = resolve_stats(plain, "s2", store=scaling(clip=((0.0, 1.0), None, (0.0, 1.0))))
    assert found.clip == ((0.0, 2.0), (0.0, 1.0))
    assert found.mean == (0.3, 0.1)


# -- unit maps --------------------------------------------------------------------------------------------------------


def test_sentinel_2_reaches_the_satlas_scale_as_the_corpus_was_made():
    bands = ["B04", "B08", "B12"]
    reflectance = np.array([0.3558 / 2, 0.3, 0.9], np.float32).reshape(3, 1, 1)
    got = convert_units(reflectance, bands, "reflectance", "uint8", "sentinel-2").ravel()
    assert got == pytest.approx([127.5, 3000 / 32, 255.0], rel=1e-5)
    dark = convert_units(np.full((3, 1, 1), -0.02), bands, "reflectance", "uint8", "sentinel-2")
    assert not dark.any()


def test_a_sentinel_2_band_under_another_name_is_refused_rather_than_stretched_like_infrared():
    with pytest.raises(ConfigError, match="no band red"):
        convert_units(np.zeros((1, 1, 1)), ["red"], "reflectance", "uint8", "sentinel-2")


def test_decibels_and_power_are_inverse_and_zero_power_is_finite():
    db = np.linspace(-45, 20, 12, dtype=np.float32).reshape(2, 2, 3)
    power = convert_units(db, ["VV", "VH"], "db", "linear_power")
    assert np.allclose(convert_units(power, ["VV", "VH"], "linear_power", "db"), db, atol=1e-4)
    floor = convert_units(np.array([[[0.0, -1e-3, np.nan]]]), ["VV"], "linear_power", "db").ravel()
    assert floor[:2].tolist() == [-60, -60]
    assert np.isnan(floor[2])


def test_an_unknown_pair_is_refused_and_the_known_maps_are_named():
    with pytest.raises(ConfigError, match=r"no unit map from kelvin to uint8 for sentinel-2; known: .*satlas-8bit"):
        unit_path("kelvin", "uint8", "sentinel-2")
    with pytest.raises(ConfigError, match="no unit map from reflectance to uint8 for landsat-8"):
        convert_units(np.zeros((1, 1, 1)), ["B4"], "reflectance", "uint8", "landsat-8")


def test_the_same_unit_changes_nothing_and_a_wrong_band_count_is_refused():
    image = np.arange(6.0).reshape(2, 1, 3)
    assert np.array_equal(convert_units(image, ["VV", "VH"], "db", "db"), image)
    with pytest.raises(DataError, match="the 3 bands named"):
        convert_units(image, BANDS, "db", "db")


def test_every_map_has_a_name_a_source_and_says_whether_it_approximates():
    assert {m.name for m in UNIT_MAPS.values() if m.approximate} == {"sentinel-1-db-to-satlas-8bit"}
    platforms = {s.platform for s in sensors.catalogue().values()} | {""}
    for name, one in UNIT_MAPS.items():
        assert name == one.name
        assert one.note
        assert one.platform in platforms
        assert unit_path(one.source, one.target, one.platform) == (one,)


def test_real_sentinel_1_decibels_land_near_the_published_8_bit_statistics(real_data):
    rasterio = pytest.importorskip("rasterio")
    chips = []
    for path in sorted((real_data / "sen1floods11" / "S1Hand").glob("*.tif")):
        with rasterio.open(path) as file:
            chips.append(file.read()[:, ::4, ::4].reshape(2, -1))
    db = np.concatenate(chips, axis=1)
    db = db[:, np.isfinite(db).all(axis=0)][:, None]
    picture = convert_units(db, ["VV", "VH"], "db", "uint8", "sentinel-1")
    published = sensors.get("sentinel-1-satlas").scaling
    apart = (picture.mean(axis=(1, 2)) - published.mean) / published.std
    assert np.abs(apart).max() < 0.75  # six flooded chips against a planet; a wrong scale is off by several
