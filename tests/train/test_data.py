"""Micro-batches: every draw a function of seed, update and position, whoever makes it."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dofa import sensors
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError, DataError
from dofa.train.augment import draw_window, flip, generator, jitter_basis, keep_bands, resize, spectral_jitter
from dofa.train.config import JitterConfig
from dofa.train.data import MicroBatches, describe_sources, make_mixture

PATCH = 8


def micro_batches(config, rank=0, ranks=1) -> MicroBatches:
    stores = open_stores(list(config.data.stores))
    sources = describe_sources(stores, {n: s.scaling for n, s in stores.items()}, config.data, PATCH)
    return MicroBatches(config, stores, sources, make_mixture(sources, config), PATCH, rank, ranks)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_for_any_number_of_processes_and_workers(settings, ranks, workers):
    config = settings(run__micro_batches=6, run__epochs=2, run__workers=workers, data__batch=8)
    alone = micro_batches(config)
    updates = alone.mixture.updates(2)
    seen: Counter[tuple[str, int]] = Counter()
    made = {}
    for rank in range(ranks):
        data = micro_batches(config, rank, ranks)
        for n, batch in enumerate(data.loader(0, updates)):
            update = n // data.accumulation
            made[update, batch["order"]] = batch
            seen.update((batch["sensor"], i) for i in batch["indices"])
    assert len(made) == 6 * updates
    # The radar corpus has fewer images than a micro-batch and is repeated as evenly as any other.
    assert len(alone.sources["sentinel-1-grd"].train) < 8
    for name, source in alone.sources.items():
        counts = [seen[name, int(i)] for i in source.train]
        assert max(counts) - min(counts) <= 1, name
        assert abs(np.mean(counts) - 2) < 1, name
    assert not set(seen) & {(n, int(i)) for n, s in alone.sources.items() for i in s.val}
    for n in (0, 7, 6 * updates - 1):
        assert same(made[divmod(n, 6)], alone[n])


def test_a_loader_that_starts_later_gives_what_an_uninterrupted_one_would(settings):
    data = micro_batches(settings(run__micro_batches=2))
    whole, late = list(data.loader(0, 5)), list(data.loader(3, 5))
    assert len(late) == 4
    assert all(same(a, b) for a, b in zip(whole[6:], late, strict=True))


def test_the_seed_changes_every_draw(settings):
    one, other = (micro_batches(settings(run__seed=s))[0] for s in (0, 1))
    assert one["sensor"] != other["sensor"] or not torch.equal(one["noise"], other["noise"])


def test_samples_of_a_batch_and_successive_updates_have_their_own_masks(settings):
    data = micro_batches(settings())
    noise = torch.cat([data[n]["noise"] for n in range(6)])
    assert len(torch.unique(noise, dim=0)) == len(noise)


def test_band_subsets_are_whole_or_three_quarters_and_in_order(settings):
    data = micro_batches(settings(data__band_keep=0.75, run__micro_batches=6))
    counts = Counter()
    for n in range(60):
        batch = data[n]
        assert list(batch["bands"]) == sorted(set(batch["bands"]))
        assert batch["image"].shape[1] == len(batch["bands"])
        if batch["sensor"] == "sentinel-2-l2a":
            counts[len(batch["bands"])] += 1
    assert set(counts) == {9, 10, 11, 12}


def test_bands_that_are_kept_are_the_images_own(settings):
    full = micro_batches(settings(data__band_keep=1.0, data__jitter={"share": 0.0}))
    some = micro_batches(settings(data__band_keep=0.75, data__jitter={"share": 0.0}))
    for n in range(12):
        assert torch.equal(full[n]["image"][:, list(some[n]["bands"])], some[n]["image"])


def test_invalid_pixels_are_zero_and_marked(settings):
    data = micro_batches(settings(run__micro_batches=6))
    seen = 0
    for n in range(12):
        batch = data[n]
        if batch["sensor"] == "sentinel-2-l2a" and batch["valid"] is not None:
            seen += 1
            hidden = ~batch["valid"][:, None].expand_as(batch["image"])
            assert hidden.any()
            assert (batch["image"][hidden] == 0).all()
    assert seen


def test_a_resized_crop_has_the_side_that_was_asked_for(settings):
    data = micro_batches(settings(data__crop=64, data__crop_area=(0.2, 1.0)))
    batch = data[0]
    assert batch["image"].shape[-2:] == (64, 64)
    assert batch["noise"].shape[1] == 64
    assert torch.isfinite(batch["image"]).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__crop": {"naip-rbg": 32}}, "data.crop names 'naip-rbg': did you mean naip-rgb"),
        ({"data__batch": {"naip-rgb": 8}}, "no entry for sentinel-1-grd and no default"),
        ({"data__weights": {"enmap": 1.0}}, "data.weights names 'enmap'"),
        ({"data__crop": 8}, "less than two patches"),
        ({"data__crop": 36, "data__crop_area": (0.2, 1.0)}, "a multiple of the patch"),
    ],
)
def test_settings_that_do_not_fit_the_stores_are_refused(settings, changes, says):
    with pytest.raises(ConfigError, match=says):
        micro_batches(settings(**changes))


def test_micro_batches_that_cannot_be_shared_evenly_are_refused(settings):
    with pytest.raises(ConfigError, match="not a multiple of the 3 processes"):
        micro_batches(settings(run__micro_batches=4), 0, 3)


def test_a_value_that_is_no_number_names_its_source(settings, monkeypatch):
    data = micro_batches(settings())
    batch = data[0]
    store = data.stores[batch["sensor"]]
    monkeypatch.setattr(store, "read", lambda *a: (np.full((len(store.sensor.bands), 32, 32), np.nan), None))
    monkeypatch.setattr("dofa.train.augment.keep_bands", lambda rng, count, least: np.arange(count))
    with pytest.raises(DataError, match=rf"{store.name}, {store.name}-\d+.tif: .*NaN"):
        data[0]


@given(st.integers(8, 80), st.integers(8, 80), st.integers(1, 8), st.booleans(), st.integers(0, 10**6))
def test_windows_lie_within_the_image(height, width, side, resized, seed):
    area = (0.2, 1.0) if resized else None
    top, left, h, w = draw_window(generator(seed), (height, width), side, area)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h >= 1
    assert w >= 1
    if not resized:
        assert h == w == side


def test_windows_cover_the_area_they_should():
    windows = [draw_window(generator(n), (500, 500), 0, (0.2, 1.0)) for n in range(500)]
    shares = np.array([h * w for _, _, h, w in windows]) / 500**2
    assert shares.min() > 0.18
    assert 0.45 < shares.mean() < 0.62


@given(st.integers(1, 250), st.floats(0.05, 1), st.integers(0, 10**6))
def test_a_band_subset_has_at_least_its_share(count, least, seed):
    kept = keep_bands(generator(seed), count, least)
    assert len(kept) >= least * count - 1e-6
    assert len(set(kept)) == len(kept)
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 0
    assert kept.max() < count


def test_resizing_marks_what_an_invalid_pixel_reached():
    image = np.ones((2, 40, 40), np.float32)
    valid = np.ones((40, 40), bool)
    valid[:10] = False
    image[:, :10] = 0
    out, mask = resize(image, valid, 20)
    assert not mask[:5].any()
    assert mask[8:].all()
    assert (out[:, ~mask] == 0).all()
    np.testing.assert_allclose(out[:, 8:], 1, atol=1e-5)


def test_flips_move_image_and_validity_together():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    valid = image[0] > 6
    seen = set()
    for n in range(64):
        out, mask = flip(generator(n), image, valid, "both")
        assert ((out[0] > 6) == mask).all()
        seen.add(out.tobytes())
    assert len(seen) == 4
    assert len({flip(generator(n), image, valid, "horizontal")[0].tobytes() for n in range(64)}) == 2
    assert len({flip(generator(n), image, valid, "none")[0].tobytes() for n in range(64)}) == 1


def test_jitter_is_one_gain_and_offset_a_band_for_its_share_of_images():
    image = generator(1).standard_normal((5, 16, 16)).astype(np.float32)
    jitter = JitterConfig(share=0.7, gain=0.2, offset=0.35)
    gains, offsets, touched = [], [], 0
    for n in range(600):
        out = spectral_jitter(generator(n), image, None, jitter, None)
        if np.array_equal(out, image):
            continue
        touched += 1
        for before, after in zip(image, out, strict=True):
            gain, offset = np.polyfit(before.ravel(), after.ravel(), 1)
            np.testing.assert_allclose(after, gain * before + offset, atol=1e-4)
            gains.append(np.log(gain))
            offsets.append(offset)
    assert touched / 600 == pytest.approx(0.7, abs=0.06)
    assert np.std(gains) == pytest.approx(0.2, rel=0.08)
    assert np.std(offsets) == pytest.approx(0.35, rel=0.08)


def test_jitter_of_hyperspectral_images_is_smooth_and_as_strong():
    bands = sensors.get("enmap-202").bands
    jitter = JitterConfig(share=1.0)
    basis = jitter_basis(bands, jitter)
    zeros = np.zeros((len(bands), 1, 1), np.float32)
    curves = np.stack([spectral_jitter(generator(n), zeros, None, jitter, basis)[:, 0, 0] for n in range(800)])
    assert curves.std(0) == pytest.approx(np.full(len(bands), 0.35), rel=0.15)
    wavelengths = np.array([b.wavelength_um for b in bands])
    correlation = np.corrcoef(curves.T)
    distance = np.abs(np.subtract.outer(wavelengths, wavelengths))
    assert correlation[distance < 0.03].min() > 0.95
    assert np.abs(correlation[distance > 0.8]).max() < 0.2
    assert jitter_basis(sensors.get("sentinel-2-l2a").bands, jitter) is None
