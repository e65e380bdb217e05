"""What a teacher is shown of every sensor, and micro-batches that bring it along."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dofa import sensors
from dofa.corpus.items import Reading
from dofa.corpus.pack import pack
from dofa.corpus.split import SplitConfig
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError
from dofa.model.config import DistillConfig
from dofa.pixels import HIDDEN, display_map, show
from dofa.train.augment import draw_bands, draw_window, flip, generator, jitter_basis, keep_bands, spectral_jitter
from dofa.train.config import DataConfig
from dofa.train.data import MicroBatches, describe_sources, make_mixture
from dofa.train.teacher_inputs import plan_teacher_input, plan_teacher_inputs

PATCH = 8
S1, S2, ENMAP, NAIP = (sensors.get(n) for n in ("sentinel-1-grd", "sentinel-2-l2a", "enmap-202", "naip-rgb"))
THREE = ("rgb", "swir-nir-red", "colour-infrared")


def distill(**changes) -> DistillConfig:
    return DistillConfig(**{"teacher": "a file", **changes})


def micro_batches(config, rank=0, ranks=1) -> MicroBatches:
    """As `pretrain` makes them, with the stores' statistics."""
    stores = open_stores(list(config.data.stores))
    views = (
        plan_teacher_inputs({n: s.sensor for n, s in stores.items()}, config.distill) if config.distill.teacher else {}
    )
    sources = describe_sources(stores, {n: s.scaling for n, s in stores.items()}, config.data, PATCH, views)
    return MicroBatches(config, stores, sources, make_mixture(sources, config), PATCH, rank, ranks)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


# -- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sensor", "three"),
    [(S2, (3, 2, 1)), (ENMAP, (47, 29, 15)), (NAIP, (0, 1, 2))],  # B04, B03, B02; 667, 561, 492 nm
    ids=lambda v: getattr(v, "name", ""),
)
def test_the_papers_proxy_of_an_optical_sensor_is_its_red_green_and_blue(sensor, three):
    view = plan_teacher_input(sensor, distill())
    assert view.pictures == (three,)
    assert not view.blank
    image = generator(0).standard_normal((len(sensor.bands), 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(view.proxy(image), image[list(three)])


def test_radar_shows_two_channels_and_zeros_or_one_of_them_three_times():
    image = generator(0).standard_normal((2, 4, 4)).astype(np.float32)
    before = image.copy()
    view = plan_teacher_input(S1, distill())
    assert view.pictures == ((0, 1, 0),)
    np.testing.assert_array_equal(view.proxy(image), [image[0], image[1], np.zeros((4, 4))])
    np.testing.assert_array_equal(image, before)
    scaling = S1.scaling.with_stats((-10, -17), (5, 5), "corpus")
    shown = view.show(image, scaling, None)
    assert shown.shape == (1, 3, 4, 4)
    np.testing.assert_allclose(shown[0, 0], np.clip((image[0] * 5 - 10 + 25) / 25, 0, 1), atol=1e-6)
    np.testing.assert_allclose(shown[0, 1], np.clip((image[1] * 5 - 17 + 32) / 25, 0, 1), atol=1e-6)
    assert (shown[0, 2] == 0).all()

    drawn = plan_teacher_input(S1, distill(sar_proxy="random"))
    found = Counter(drawn.draw(generator(n)).pictures for n in range(400))
    assert set(found) == {((0, 0, 0),), ((1, 1, 1),)}
    assert 160 < found[((0, 0, 0),)] < 240
    np.testing.assert_array_equal(
        drawn.draw(generator(1)).proxy(image), image[[drawn.draw(generator(1)).pictures[0][0]] * 3]
    )


def test_other_views_of_radar_are_its_rendering():
    for view in ("visible", "full"):
        planned = plan_teacher_input(S1, distill(view=view))
        assert planned.pictures == ((0, 1, 0),)
        assert not planned.blank


def test_renderings_are_those_a_sensor_has_else_its_first():
    full = partial(distill, view="full")
    index = partial(S2.index)
    assert set(plan_teacher_input(S2, full(renderings=THREE)).pictures) == {
        tuple(index(S2.renderings[t])) for t in THREE
    }
    assert plan_teacher_input(S2, full(renderings=("swir-nir-red",))).pictures == ((10, 7, 3),)
    assert len(plan_teacher_input(ENMAP, full(renderings=THREE)).pictures) == 2
    assert plan_teacher_input(NAIP, full(renderings=("swir-nir-red",))).pictures == ((0, 1, 2),)


def test_the_sensors_own_normalisation_is_shown_where_it_is_asked_for():
    image = generator(0).standard_normal((12, 4, 4)).astype(np.float32)
    view = plan_teacher_input(S2, distill(input="sensor"))
    np.testing.assert_array_equal(view.show(image, S2.scaling, None), image[None, [3, 2, 1]])


def test_every_rendering_is_shown_by_the_maps_of_its_bands_and_what_is_hidden_is_grey():
    scaling = S2.scaling.with_stats([0.2] * 12, [0.1] * 12, "corpus")
    image = generator(0).standard_normal((12, 4, 4)).astype(np.float32)
    valid = np.ones((4, 4), bool)
    valid[1, 2] = False
    shown = plan_teacher_input(S2, distill(view="full", renderings=THREE)).show(image, scaling, valid)
    for picture, title in zip(shown, [t for t in S2.renderings if t in THREE], strict=True):
        names = S2.renderings[title]
        maps = [display_map("reflectance", S2.band(n).wavelength_um, None) for n in names]
        expected = show(image[S2.index(names)], scaling.select(names), maps)
        np.testing.assert_array_equal(picture[:, valid], expected[:, valid])
        np.testing.assert_array_equal(picture[:, 1, 2], np.float32(HIDDEN))
    assert shown.min() >= 0
    assert shown.max() <= 1


@pytest.mark.parametrize("view", [{}, {"view": "visible"}, {"view": "full", "renderings": THREE}], ids=str)
def test_a_proxy_is_the_one_picture_of_its_sensor_in_every_view(view):
    proxies = {"sentinel-2-l2a": ("B11", "nir", "B04"), "sentinel-1-grd": ("VH", "VH", "VV")}
    assert plan_teacher_input(S2, distill(proxies=proxies, **view)).pictures == ((10, 7, 3),)
    radar = plan_teacher_input(S1, distill(proxies=proxies, sar_proxy="random", **view))
    assert (radar.pictures, radar.blank, radar.channels) == (((1, 1, 0),), False, 0)


def test_views_that_cannot_be_are_refused_in_one_line():
    bare = replace(NAIP, name="bare", renderings={})
    counts = replace(S2, name="counts", scaling=replace(S2.scaling, unit="dn"))
    for known, settings, says in (
        ([S2], {"proxies": {"sentinel-2-l2a": ("B4O", "B03", "B02")}}, "no band 'B4O': did you mean B04"),
        ([NAIP], {"proxies": {"naip-rgb": ("NIR", "R", "G")}}, "sensor naip-rgb has no band 'NIR'"),
        ([S2], {"proxies": {"sentinel2": ("B04", "B03", "B02")}}, "proxies names 'sentinel2': did you mean sentinel-2"),
        ([S2], {"renderings": ("swir-nir-rad",), "view": "full"}, "renderings names .*did you mean swir-nir-red"),
        ([NAIP, bare], {}, r"sensor bare names no three bands .* distill.proxies, such as bare: \[R, G, B\]"),
        ([S1], {"sar_proxy": "random", "crops": 2}, "distill.crops keeps one teacher's answer"),
        ([S2, counts], {}, "sensor counts: no display map for values in dn"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            plan_teacher_inputs({s.name: s for s in known}, distill(**settings))
        assert "\n" not in str(caught.value)
    plan_teacher_inputs(
        {"naip-rgb": NAIP}, distill(view="full", renderings=("swir-nir-red",))
    )  # known, though not to NAIP
    plan_teacher_inputs({"counts": counts}, distill(input="sensor"))


# -- micro-batches ----------------------------------------------------------------------------------------------------


def test_without_a_teacher_the_samples_are_the_draws_they_always_were(settings):
    """Every draw again, in the order it has had since the first version: a run of before is continued to the bit."""
    config = settings(run__micro_batches=3, run__seed=5, data__weights="equal")
    data = micro_batches(config)
    kinds = set()
    for n in range(9):
        update, order = divmod(n, 3)
        planned = data.mixture.plan(update)[order]
        source, store = data.sources[planned.sensor], data.stores[planned.sensor]
        bands = keep_bands(generator(5, update, order, 1), source.shape[0], 0.75)
        names = [source.sensor.band_names[b] for b in bands]
        basis = jitter_basis([source.sensor.bands[b] for b in bands], config.data.jitter)
        made = data[n]
        for i, (index, position) in enumerate(zip(planned.indices, planned.positions, strict=True)):
            rng = generator(5, update, position, 0)
            where = int(source.train[index])
            raw, valid = store.read(where, *draw_window(rng, source.shape[1:], 32, None), list(map(int, bands)))
            image, valid = flip(rng, source.scaling.select(names).normalise(raw, valid), valid, "both")
            image = spectral_jitter(rng, image, valid, config.data.jitter, basis)
            assert np.array_equal(made["image"][i].numpy(), image)
            assert np.array_equal(made["noise"][i].numpy(), rng.random(16, dtype=np.float32))
        assert set(made) == {"image", "valid", "noise", "sensor", "bands", "indices", "order"}
        kinds.add(planned.sensor)
    assert len(kinds) == 3


@pytest.mark.parametrize("view", ["proxy", "full"])
def test_a_teacher_changes_nothing_that_the_student_sees_and_sees_itself_no_jitter(settings, view):
    options = {"run__micro_batches": 3, "data__weights": "equal"}
    alone = micro_batches(settings(**options, data__jitter={"share": 1.0}))
    taught = micro_batches(settings(**options, data__jitter={"share": 1.0}, distill__teacher="x", distill__view=view))
    still = micro_batches(settings(**options, data__jitter={"share": 0.0}, distill__teacher="x", distill__view=view))
    for n in range(6):
        a, b, c = alone[n], taught[n], still[n]
        assert same(a, {k: b[k] for k in a})
        assert not torch.equal(b["image"], c["image"])
        assert torch.equal(b["pictures"], c["pictures"])
        assert ("proxy" in b) == (view == "proxy")
        if view == "proxy":
            assert torch.equal(b["proxy"], c["proxy"])


def test_pictures_and_proxy_show_the_crop_that_the_student_sees(settings):
    fixed = {"data__band_keep": 1.0, "data__jitter": {"share": 0.0}, "run__micro_batches": 3, "data__weights": "equal"}
    data = micro_batches(settings(**fixed, distill__teacher="x"))
    for n in range(3):
        batch = data[n]
        source = data.sources[batch["sensor"]]
        three = list(batch["proxy_bands"])
        assert tuple(three) == source.view.pictures[0]
        proxy = batch["image"][:, three].clone()
        radar = batch["sensor"] == "sentinel-1-grd"
        if radar:
            proxy[:, 2] = 0
        assert torch.equal(batch["proxy"], proxy)
        maps = [source.view.maps[b] for b in three]
        names = [source.sensor.band_names[b] for b in three]
        for i in range(len(proxy)):
            one = [show(proxy[i, [k]].numpy(), source.scaling.select([names[k]]), [maps[k]])[0] for k in range(3)]
            expected = np.stack(one)
            if radar:
                expected[2] = 0
            seen = np.ones(expected.shape[1:], bool) if batch["valid"] is None else batch["valid"][i].numpy()
            np.testing.assert_array_equal(batch["pictures"][i, 0].numpy()[:, seen], expected[:, seen])
            assert (batch["pictures"][i, 0].numpy()[:, ~seen] == np.float32(HIDDEN)).all()


def test_one_radar_channel_is_drawn_for_a_whole_micro_batch_and_both_occur(settings):
    only = {"sentinel-1-grd": 1.0, "sentinel-2-l2a": 0.0, "naip-rgb": 0.0}
    data = micro_batches(
        settings(distill__teacher="x", distill__sar_proxy="random", data__weights=only, data__jitter={"share": 0.0})
    )
    found = Counter()
    for n in range(24):
        batch = data[n]
        channel = batch["proxy_bands"][0]
        assert batch["proxy_bands"] == (channel,) * 3
        if len(batch["bands"]) == 2:
            assert torch.equal(batch["proxy"], batch["image"][:, [channel] * 3])
        assert torch.equal(batch["pictures"][:, 0, 0], batch["pictures"][:, 0, 2])
        assert same(batch, data[n])
        found[channel] += 1
    assert set(found) == {0, 1}


def test_band_sets_have_their_shares_and_depend_on_seed_update_and_order_alone():
    data = DataConfig(band_keep=0.3, band_sets={"rgb": 0.25, "all": 0.4})
    draw = partial(draw_bands, count=12, rgb=(3, 2, 1), data=data)
    drawn = [tuple(draw(7, update, order)) for update in range(1000) for order in range(2)]
    shares = Counter("rgb" if b == (1, 2, 3) else "all" if len(b) == 12 else "random" for b in drawn)
    assert shares["rgb"] / 2000 == pytest.approx(0.25, abs=0.04)
    # One in nine of the random subsets is whole, too.
    assert shares["all"] / 2000 == pytest.approx(0.4 + 0.35 / 9, abs=0.04)
    sizes = {len(b) for b in drawn} - {3}
    assert sizes == set(range(4, 13))
    assert drawn == [tuple(draw(7, update, order)) for update in range(1000) for order in range(2)]
    assert drawn[:40] != [tuple(draw(8, update, order)) for update in range(20) for order in range(2)]
    without = partial(draw_bands, count=2, rgb=None, data=replace(data, band_sets={"rgb": 1.0}))
    assert all(tuple(without(7, update, 0)) == (0, 1) for update in range(20))


def test_a_micro_batch_of_rgb_holds_the_sensors_own_three(settings):
    data = micro_batches(settings(data__band_sets={"rgb": 1.0}, run__micro_batches=3, data__weights="equal"))
    found = {batch["sensor"]: batch["bands"] for batch in (data[n] for n in range(6))}
    assert found == {"sentinel-2-l2a": (1, 2, 3), "naip-rgb": (0, 1, 2), "sentinel-1-grd": (0, 1)}


def test_a_picture_is_red_green_blue_whatever_the_order_in_the_store(settings, tmp_path):
    """The same images packed as RGB and as BGR show the same picture, and each is drawn with its own wavelengths."""
    images = generator(3).integers(0, 256, (8, 3, 32, 32)).astype(np.uint8)
    bgr = replace(NAIP.select(["B", "G", "R"]), name="naip-rgb")
    found = {}
    for title, sensor, pixels in (("rgb", NAIP, images), ("bgr", bgr, images[:, ::-1])):
        reading = Reading.from_arrays(sensor, np.ascontiguousarray(pixels), [f"p{i}" for i in range(8)])
        pack(reading, tmp_path / title, split=SplitConfig("place", 0.2), workers=1, progress=False)
        config = settings(
            data__stores=[str(tmp_path / title)],
            data__jitter={"share": 0.0},
            data__band_sets={"rgb": 1.0},
            distill__teacher="x",
        )
        data = micro_batches(config)
        found[title] = data[0], [data.sources["naip-rgb"].sensor.bands[b].name for b in data[0]["bands"]]
    (one, names), (other, reversed_names) = found["rgb"], found["bgr"]
    assert (names, reversed_names) == (["R", "G", "B"], ["B", "G", "R"])
    assert torch.equal(one["pictures"], other["pictures"])
    assert torch.allclose(one["proxy"], other["proxy"], atol=1e-5)
    assert torch.allclose(one["image"], other["image"].flip(1), atol=1e-5)
    assert other["proxy_bands"] == (2, 1, 0)


@pytest.mark.parametrize("crops", [0, 3])
def test_a_sample_is_the_same_whoever_makes_it(settings, crops):
    options = {
        "run__micro_batches": 4,
        "distill__teacher": "x",
        "distill__view": "full",
        "distill__renderings": list(THREE),
        "distill__crops": crops,
        "data__band_sets": {"rgb": 0.3, "all": 0.3},
    }
    alone = micro_batches(settings(**options))
    for rank in range(2):
        data = micro_batches(settings(**options, run__workers=1), rank, 2)
        for n, batch in enumerate(data.loader(0, 3)):
            update, micro = divmod(n, 2)
            assert batch["order"] == micro * 2 + rank
            assert same(batch, alone[4 * update + batch["order"]])


def test_fixed_crops_are_as_many_as_asked_for_and_return(settings):
    only = {"sentinel-1-grd": 0.0, "sentinel-2-l2a": 1.0, "naip-rgb": 0.0}
    options = {"distill__teacher": "x", "distill__crops": 2, "data__weights": only, "data__jitter": {"share": 0.0}}
    data = micro_batches(settings(**options, data__band_keep=1.0, data__batch=8, run__micro_batches=1))
    source = data.sources["sentinel-2-l2a"]
    crops = {
        (i, c): data.fixed_crop(source, i, c, np.arange(12))[0] for i in range(len(source.train)) for c in range(2)
    }
    seen = Counter()
    for n in range(12):
        batch = data[n]
        for image, index in zip(batch["image"].numpy(), batch["indices"], strict=True):
            i = int(np.flatnonzero(source.train == index)[0])
            fits = [c for c in range(2) if np.array_equal(crops[i, c], image)]
            assert fits
            seen[i, fits[0]] += 1
    assert len(seen) > 0.8 * len(crops)
    other = micro_batches(settings(**options, data__band_keep=1.0, run__seed=1))
    assert not np.array_equal(other.fixed_crop(source, 0, 0, np.arange(12))[0], crops[0, 0])
