"""A training sample, to the bit, is what Zarr holds, put through every step of its description one after the other."""

import numpy as np
import pytest
import torch
import zarr

from dofa.corpus.store import open_stores
from dofa.train.augment import draw_window, generator, jitter_basis
from dofa.train.data import MicroBatches, describe_sources, make_mixture

PATCH = 8


def bits(array) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32).view(np.int32)


def by_hand(data: MicroBatches, update: int, bands: list[int]) -> np.ndarray:
    """The images of an update's only micro-batch: whole arrays at every step, all bands at once, through Zarr."""
    (planned,) = data.mixture.plan(update)
    config, source = data.config.data, data.sources[planned.sensor]
    store, scaling, seed = data.stores[planned.sensor], source.scaling, data.config.run.seed
    images = zarr.open_array(store.url, path=f"{planned.sensor}/images", mode="r")
    masks = None
    if store.attributes["counts"]["partly_valid"]:
        masks = zarr.open_array(store.url, path=f"{planned.sensor}/valid", mode="r")
    basis = jitter_basis([source.sensor.bands[b] for b in bands], config.jitter)

    def column(values) -> np.ndarray:
        return np.array([values[b] for b in bands], np.float32)[:, None, None]

    out = []
    for index, position in zip(planned.indices, planned.positions, strict=True):
        rng = generator(seed, update, position, 0)
        where = int(source.train[index])
        top, left, height, width = draw_window(rng, source.shape[1:], source.side, None)
        rows, columns = slice(top, top + height), slice(left, left + width)
        x = images[where][bands][:, rows, columns].astype(np.float32) * column(scaling.scale) + column(scaling.offset)
        clips = [(-np.inf, np.inf) if c is None else c for c in scaling.clip]
        x = np.clip(x, column([c[0] for c in clips]), column([c[1] for c in clips]))
        x = (x - column(scaling.mean)) * column([1 / s for s in scaling.std])  # none is constant here
        valid = np.ones(x.shape[1:], bool) if masks is None else masks[where][rows, columns]
        x = np.where(valid, x, np.float32(0))
        across, down = rng.random(2) < 0.5
        flips = (slice(None, None, -1 if down else 1), slice(None, None, -1 if across else 1))
        x, valid = x[:, flips[0], flips[1]], valid[flips]
        jittered = rng.random() < config.jitter.share
        draws = rng.standard_normal((2, len(bands)), dtype=np.float32)
        if jittered:
            draws = draws if basis is None else draws @ basis.T
            x = x * np.exp(config.jitter.gain * draws[0])[:, None, None]
            x = np.where(valid, x + (config.jitter.offset * draws[1])[:, None, None], np.float32(0))
        out.append(x)
    return np.stack(out)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_step_may_be_taken_by_hand(settings, workers):
    config = settings(
        run__workers=workers,
        run__micro_batches=1,
        data__batch=8,
        data__crop=24,
        data__flips="both",
        data__band_keep=0.5,
        data__jitter={"share": 0.8, "gain": 0.3, "offset": 0.7},
    )
    stores = open_stores(list(config.data.stores))
    sources = describe_sources(stores, {n: s.scaling for n, s in stores.items()}, config.data, PATCH)
    data = MicroBatches(config, stores, sources, make_mixture(sources, config), PATCH)
    seen = set()
    for update, batch in enumerate(data.loader(0, 12)):
        seen.add(batch["sensor"])
        assert batch["image"].dtype == torch.float32
        np.testing.assert_array_equal(bits(batch["image"]), bits(by_hand(data, update, list(batch["bands"]))))
    assert seen == set(stores)
