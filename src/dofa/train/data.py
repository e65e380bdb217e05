"""From stores to micro-batches: crops, flips, band subsets, spectral jitter and masks.

Every draw is a function of the run's seed, the update and the position in the global batch, never of the process or
loader worker that happens to make it (docs/architecture.md, Randomness).
"""

import signal
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from dofa.corpus.mixture import MicroBatch, Mixture
from dofa.corpus.store import SensorStore
from dofa.errors import ConfigError, DataError, DofaError, nearest
from dofa.pixels import Scaling
from dofa.sensors import Sensor, catalogue
from dofa.train.augment import draw_bands, draw_window, flip, generator, jitter_basis, resize, spectral_jitter
from dofa.train.config import DataConfig, PretrainConfig
from dofa.train.teacher_inputs import TeacherInput

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """One sensor of a run: where its images are and what is done to them.

    Attributes:
        sensor: with its bands in the order of the store.
        scaling: raw to normalised.
        shape: (C, H, W) of the stored images.
        train: indices of the training split.
        val: indices of the held-out split.
        side: of the training image in pixels.
        batch: images of a micro-batch.
        view: what a teacher is shown; None where there is none.
        rgb: positions of red, green and blue, or of whatever the first rendering shows; None without a rendering.
    """

    sensor: Sensor
    scaling: Scaling
    shape: tuple[int, int, int]
    train: NDArray[np.int64]
    val: NDArray[np.int64]
    side: int
    batch: int
    view: TeacherInput | None = None
    rgb: tuple[int, ...] | None = None

    def held_out(self, limit: int) -> NDArray[np.int64]:
        """At most `limit` held-out images, evenly spread, so that neighbours from one place do not fill the sample."""
        if len(self.val) <= limit:
            return self.val
        chosen: NDArray[np.int64] = self.val[np.linspace(0, len(self.val) - 1, limit).round().astype(int)]
        return chosen


def describe_sources(
    stores: dict[str, SensorStore],
    scalings: dict[str, Scaling],
    data: DataConfig,
    patch: int,
    views: Mapping[str, TeacherInput] | None = None,
) -> dict[str, Source]:
    """What a run does with every sensor of its stores.

    Args:
        scalings: by sensor name, with the statistics the model is trained with.
        data: crops, batches and weights; those given one a sensor must name sensors of the stores.
        patch: side of a patch in pixels.
        views: what a teacher is shown, by sensor name.

    Raises:
        ConfigError: a setting names another sensor, misses one, or asks for crops smaller than two patches.
        DataError: a sensor has no image to train on.
    """
    for name in ("crop", "batch", "weights"):
        given = getattr(data, name)
        known = {*stores, "default", *catalogue()} if name != "weights" else {*stores}
        for sensor in given if isinstance(given, dict) else ():
            if sensor not in known:
                raise ConfigError(f"data.{name} names {sensor!r}: {nearest(sensor, stores)}")
    sources = {}
    for name, store in stores.items():
        channels, height, width = store.shape
        crop = _one(data.crop, name, "crop")
        if data.crop_area is not None and crop % patch:
            raise ConfigError(f"data.crop of {name} is {crop}; a multiple of the patch of {patch} pixels")
        side = crop if data.crop_area is not None else min(crop, height, width) // patch * patch
        if side < 2 * patch:
            raise ConfigError(
                f"sensor {name}: images of {height}×{width} pixels and data.crop {crop} leave {side} pixels, "
                f"less than two patches of {patch}"
            )
        train = np.asarray(store.indices("train"))
        if not len(train):
            raise DataError(f"sensor {name} has no training images in {', '.join(data.stores)}")
        sources[name] = Source(
            sensor=store.sensor,
            scaling=scalings[name],
            shape=(channels, height, width),
            train=train,
            val=np.asarray(store.indices("val")),
            side=side,
            batch=_one(data.batch, name, "batch"),
            view=(views or {}).get(name),
            rgb=tuple(store.sensor.index(next(iter(store.sensor.renderings.values()))))
            if store.sensor.renderings
            else None,
        )
    return sources


def make_mixture(sources: dict[str, Source], config: PretrainConfig, known: Collection[str] = ()) -> Mixture:
    """The plan of a run: which images stand in which micro-batch of which update.

    Args:
        known: sensors that `model.init` was trained on, for `data.rehearsal`.
    """
    given = config.data.weights
    weights = given if isinstance(given, dict) else dict.fromkeys(sources, 1.0) if given == "equal" else None
    if config.data.rehearsal is not None:
        weights = rehearse(weights or {n: len(s.train) / s.batch for n, s in sources.items()}, known, config)
    return Mixture(
        counts={name: len(s.train) for name, s in sources.items()},
        batch={name: s.batch for name, s in sources.items()},
        micro_batches_per_update=config.run.micro_batches,
        weights=weights,
        seed=config.run.seed,
    )


def rehearse(weights: Mapping[str, float], known: Collection[str], config: PretrainConfig) -> dict[str, float]:
    """The weights with a share of `data.rehearsal` for known sensors together, the rest for new ones.

    Args:
        known: sensors that the model knew before.

    Raises:
        ConfigError: `model.init` is not set, or there are only known sensors, or only new ones.
    """
    config.check_init()
    share = config.data.rehearsal or 0.0
    old = sum(w for name, w in weights.items() if name in known)
    new = sum(w for name, w in weights.items() if name not in known)
    if not old or not new:
        raise ConfigError(
            f"data.rehearsal mixes sensors that {config.model.init} knows ({', '.join(sorted(known)) or 'none'}) with "
            f"new ones, but data.stores holds {', '.join(weights)}: add the {'new' if old else 'old'} ones, or set "
            "data.rehearsal=null"
        )
    return {name: w * (share / old if name in known else (1 - share) / new) for name, w in weights.items()}


class MicroBatches(Dataset[dict[str, Any]]):
    """The micro-batches of one process, numbered over the whole run: item u·A + a is the a-th of update u.

    An item is a dict: `image` (B, C, h, w) float32, normalised; `valid` (B, h, w) bool or None where every pixel is;
    `noise` (B, N) float32, which draws the mask; `sensor` its name; `bands` indices of the C bands kept; `indices` of
    the images in the store; `order` of the micro-batch within the update over all processes.

    For a teacher, too: `pictures` (B, R, 3, h, w), or, where its answers are kept on disk, `target` (B, blocks, T, D);
    and with the view `proxy`, `proxy` (B, 3, h, w) and its `proxy_bands`. None of them is jittered.

    Args:
        patch: side of a patch in pixels.
        answers: what a teacher says of the fixed crops of each sensor, (images, crops, blocks, T, D), where it is kept.
        ranks: how many there are; they share the update's micro-batches evenly.

    Raises:
        ConfigError: the micro-batches of an update cannot be shared evenly.
    """

    def __init__(
        self,
        config: PretrainConfig,
        stores: dict[str, SensorStore],
        sources: dict[str, Source],
        mixture: Mixture,
        patch: int,
        rank: int = 0,
        ranks: int = 1,
        answers: Mapping[str, NDArray[np.float16]] | None = None,
    ) -> None:
        if config.run.micro_batches % ranks:
            raise ConfigError(
                f"run.micro_batches is {config.run.micro_batches}, not a multiple of the {ranks} processes: "
                f"{more_processes(config, ranks)}"
            )
        self.config, self.stores, self.sources = config, stores, sources
        self.mixture, self.patch = mixture, patch
        self.rank, self.ranks = rank, ranks
        self.answers = answers
        self.accumulation = config.run.micro_batches // ranks

    def __getitem__(self, item: int) -> dict[str, Any]:
        update, micro = divmod(item, self.accumulation)
        # Neighbours in the plan are mostly of one sensor: dealt round, no process waits for another's 202 bands.
        order = micro * self.ranks + self.rank
        return self.make(update, order, self.mixture.plan(update)[order])

    def make(self, update: int, order: int, planned: MicroBatch) -> dict[str, Any]:
        """Read and augment one micro-batch of an update.

        Args:
            update: number of the update.
            order: of the micro-batch in it, over all ranks.
        """
        config, seed = self.config, self.config.run.seed
        source = self.sources[planned.sensor]
        everything = np.arange(source.shape[0])
        # One subset for the whole micro-batch, for its images share one set of generated kernels.
        bands = draw_bands(seed, update, order, source.shape[0], source.rgb, config.data)
        view = None if source.view is None else source.view.draw(generator(seed, update, order, 4))
        read = bands if view is None else everything
        jitter = jitter_basis([source.sensor.bands[b] for b in bands], config.data.jitter)
        made: dict[str, list[Any]] = {"image": [], "valid": [], "noise": []}
        if view is not None:
            made |= {"target": []} if self.answers else {"pictures": []}
            made |= {"proxy": []} if config.distill.view == "proxy" else {}
        for index, position in zip(planned.indices, planned.positions, strict=True):
            rng = generator(seed, update, position, 0)
            if config.distill.crops and view is not None:
                crop = int(rng.integers(config.distill.crops))
                image, valid = self.fixed_crop(source, index, crop, read)
                if self.answers:
                    made["target"].append(np.array(self.answers[planned.sensor][index, crop]))
            else:
                image, valid = self._crop(rng, source, index, read)
            if "pictures" in made and view is not None:
                made["pictures"].append(view.show(image, source.scaling, valid))
            if "proxy" in made and view is not None:
                made["proxy"].append(view.proxy(image))
            kept = image if len(read) == len(bands) else image[bands]
            made["image"].append(spectral_jitter(rng, kept, valid, config.data.jitter, jitter))
            made["valid"].append(valid)
            made["noise"].append(rng.random((source.side // self.patch) ** 2, dtype=np.float32))
        valids = made.pop("valid")
        full = np.ones((source.side, source.side), bool)
        whole = all(v is None or v.all() for v in valids)
        # In a loader worker this stacks into memory shared with the training process: no second copy on the way.
        batch: dict[str, Any] = {name: default_collate(parts) for name, parts in made.items()}
        batch["valid"] = None if whole else torch.from_numpy(np.stack([full if v is None else v for v in valids]))
        if view is not None:
            batch["proxy_bands"] = view.pictures[0]
        return batch | {
            "sensor": planned.sensor,
            "bands": tuple(map(int, bands)),
            "indices": tuple(int(source.train[i]) for i in planned.indices),
            "order": order,
        }

    def fixed_crop(
        self, source: Source, index: int, crop: int, bands: NDArray[np.int64]
    ) -> tuple[Float, NDArray[np.bool_] | None]:
        """One of the crops that are the same throughout a run (`distill.crops`), normalised and flipped.

        Args:
            index: of the image among those to train on.
            crop: number of the crop.
        """
        seed = self.config.run.seed
        return self._crop(generator(seed, int(source.train[index]), crop, 5), source, index, bands)

    def _crop(
        self, rng: np.random.Generator, source: Source, index: int, bands: NDArray[np.int64]
    ) -> tuple[Float, NDArray[np.bool_] | None]:
        """A random crop of a training image, normalised, brought to size and flipped: (C, side, side), and validity."""
        data = self.config.data
        store = self.stores[source.sensor.name]
        where = int(source.train[index])
        top, left, height, width = draw_window(rng, source.shape[1:], source.side, data.crop_area)
        whole = len(bands) == source.shape[0]
        raw, valid = store.read(where, top, left, height, width, None if whole else list(map(int, bands)))
        scaling = source.scaling if whole else _select(source.scaling, tuple(map(int, bands)))
        try:
            image = scaling.normalise(raw, valid)
        except DataError as error:
            raise DataError(f"{source.sensor.name}, {store.sources([where])[0]}: {error}") from None
        image, valid = resize(image, valid, source.side)
        return flip(rng, image, valid, data.flips)

    def describe(self, batch: dict[str, Any]) -> str:
        """Sensor and sources of a micro-batch, for error messages."""
        sources = list(dict.fromkeys(map(str, self.stores[batch["sensor"]].sources(list(batch["indices"])))))
        more = f" and {len(sources) - 8} more" if len(sources) > 8 else ""
        return f"sensor {batch['sensor']}, sources {', '.join(sources[:8])}{more}"

    def batches(self, start: int, updates: int) -> Generator[dict[str, Any], None, None]:
        """What the loader makes of the updates from `start` to the end; closed, its workers are gone.

        Args:
            start: first update.

        Raises:
            DofaError: an image cannot be read.
        """
        made = iter(self.loader(start, updates))
        try:
            for batch in made:
                if isinstance(batch, DofaError):
                    raise batch
                yield batch
        finally:
            # At the end of the process Python sends SIGTERM to workers that are left, which they ignore, and waits.
            if self.config.run.workers:
                made._shutdown_workers()  # type: ignore[attr-defined]

    def loader(self, start: int, updates: int) -> "DataLoader[dict[str, Any] | DofaError]":
        """A loader of the updates from `start` to the end, in order, whatever the number of workers.

        An image that cannot be read comes as its error: `batches` raises it.

        Args:
            start: first update.
        """
        workers = self.config.run.workers
        return DataLoader(
            _Caught(self),
            batch_size=None,
            sampler=range(start * self.accumulation, updates * self.accumulation),
            num_workers=workers,
            collate_fn=_as_made,
            worker_init_fn=_ignore_stop_signals if workers else None,
            pin_memory=torch.cuda.is_available(),
        )


class _Caught(Dataset[dict[str, Any] | DofaError]):
    """Gives a worker's error back as a value: the loader would raise it with the worker's traceback as its text."""

    def __init__(self, data: MicroBatches) -> None:
        self.data = data

    def __getitem__(self, item: int) -> dict[str, Any] | DofaError:
        try:
            return self.data[item]
        except DofaError as error:
            return error


def held_out_batch(
    store: SensorStore, source: Source, patch: int, indices: NDArray[np.int64], seed: int, masks: int = 1
) -> dict[str, Any]:
    """Images for judging: crops from their middle, unaltered, under masks that depend on image and seed alone.

    Args:
        source: what a run does with it.
        patch: side of a patch in pixels.
        indices: of k images in the store.

    Returns:
        `image`, `valid` and `noise` as in `MicroBatches`, of k·masks samples, an image's masks next to each other.
    """
    side = min(source.side, *source.shape[1:])
    top, left = ((n - side) // 2 for n in source.shape[1:])
    images, valids, noises = [], [], []
    for index in indices:
        raw, valid = store.read(int(index), top, left, side, side)
        image, valid = resize(source.scaling.normalise(raw, valid), valid, source.side)
        images.append(image)
        valids.append(np.ones(image.shape[1:], bool) if valid is None else valid)
        shape = masks, (source.side // patch) ** 2
        noises.append(generator(seed, int(index), 0, 2).random(shape, dtype=np.float32))
    valid_khw = np.stack(valids)
    return {
        "image": torch.from_numpy(np.stack(images)).repeat_interleave(masks, 0),
        "valid": None if valid_khw.all() else torch.from_numpy(valid_khw).repeat_interleave(masks, 0),
        "noise": torch.from_numpy(np.concatenate(noises)),
    }


def more_processes(config: PretrainConfig, ranks: int) -> str:
    """The settings that share an update out over `ranks` processes, with as many images in it where that is possible.

    Args:
        ranks: number of processes, which `run.micro_batches` is no multiple of.
    """
    micro, batch = config.run.micro_batches, config.data.batch
    if isinstance(batch, int) and micro * batch % ranks == 0:
        images = micro * batch
        return f"--set run.micro_batches={ranks} data.batch={images // ranks} keeps the {images} images of an update"
    return f"--set run.micro_batches={ranks}, with a smaller data.batch to keep as many images in an update"


def _one(value: int | dict[str, int], sensor: str, name: str) -> int:
    if isinstance(value, int):
        return value
    found = value.get(sensor, value.get("default"))
    if found is None:
        raise ConfigError(f"data.{name} has no entry for {sensor} and no default, only {', '.join(value)}")
    return found


@lru_cache(maxsize=8)  # all images of a micro-batch share their bands
def _select(scaling: Scaling, bands: tuple[int, ...]) -> Scaling:
    return scaling.select([scaling.bands[b] for b in bands])


def _as_made(batch: Any) -> Any:
    """A micro-batch is whole when it is made; the loader's own conversion would turn its tuples into lists."""
    return batch


def _ignore_stop_signals(worker: int) -> None:
    """A scheduler or a terminal signals every process: the one that trains decides, its workers leave with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
