"""Writing packed corpora: parallel, interruptible at any moment, the same bytes whatever the number of workers.

Images are loaded ahead by threads and consumed in order, one shard of samples at a time. A shard is written whole, then
a line of the journal says what it holds; an interrupted pack continues after the last such line. The journal becomes
the store's columns at the end, and `complete` is set last.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dofa.corpus import shards
from dofa.corpus.items import Item, Reading, Refusal, Split
from dofa.corpus.journal import Journal, Line
from dofa.corpus.loading import Loaded, Loader
from dofa.corpus.metadata import FORMAT, FORMAT_VERSION, check_format, column_digest, read_attributes, sealed
from dofa.corpus.split import SplitConfig, assign, held_out_places
from dofa.corpus.store import COLUMN_CHUNK, SensorStore
from dofa.documents import parse_json, read_bytes
from dofa.errors import ConfigError, DataError, listed
from dofa.io import name_os_errors, write_atomically
from dofa.pixels import RunningStats
from dofa.progress import Progress

DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
SHARD_BYTES = 32 * 2**20  # raw: one shard is held in memory, and what an interruption loses at most
JOURNAL = "journal.jsonl"


@dataclass
class PackReport:
    """What a pack wrote and what it refused.

    Attributes:
        store: the folder.
        sensor: the group in it.
        images: number of images by split.
        places: number of places by split.
        refused: images left out, with the reason.
        gap: images left out because they lie between training and held-out blocks.
        notes: what the user should know.
        constant: bands without variance in the training split.
        seconds: it took.
    """

    store: str
    sensor: str
    images: dict[str, int]
    places: dict[str, int]
    refused: list[Refusal]
    gap: int = 0
    notes: list[str] = field(default_factory=list)
    constant: tuple[str, ...] = ()
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """The report for people."""
        parts = [f"{n} {split} ({self.places[split]} places)" for split, n in self.images.items()]
        out = [f"{self.store}: {self.sensor}, {sum(self.images.values())} images: {', '.join(parts)}"]
        if self.gap:
            out.append(f"{self.gap} images lie in the gap between training and held-out blocks and are left out")
        if self.constant:
            out.append(f"bands without variance, fed to models as 0: {listed(self.constant)}")
        out += self.notes
        if self.refused:
            out.append(f"{len(self.refused)} refused, all listed in {self.store}/{self.sensor}/refused.jsonl:")
            out += [f"  {r.source}: {r.reason}" for r in self.refused[:5]]
        return out


def pack(
    reading: Reading,
    out: str | Path,
    *,
    split: SplitConfig | None = None,
    workers: int | None = None,
    chunk: int | None = None,
    min_valid: float = 0.0,
    resume: bool = True,
    progress: bool = True,
) -> PackReport:
    """Write the images of one sensor into a store, beside the sensors it already holds.

    Args:
        out: the store's folder, made where it does not exist.
        split: what is held out; by default a tenth of the places.
        workers: threads that load, check and compress images, by default one a processor; the result is the same.
        chunk: side of a chunk in pixels, the smallest piece that is read; by default at most 64, less for many bands.
        min_valid: least share of valid pixels; an image without a single one is always refused.
        resume: continue an interrupted pack; False begins anew.
        progress: show it, as a bar on a terminal and as plain lines elsewhere.

    Returns:
        What was written and refused; that of the finished store if there was nothing left to do.

    Raises:
        DataError: not one image could be packed, the folder holds something else, or other images or options.
        ConfigError: a setting that does not hold.
    """
    began = time.monotonic()
    split = split or SplitConfig()
    sensor, scaling = reading.sensor, reading.sensor.scaling
    if scaling is None:
        raise DataError(f"sensor {sensor.name} has no default scaling: give the reader the scaling of its files")
    if reading.dtype not in DTYPES:
        raise DataError(f"images of type {reading.dtype} are not packed; {', '.join(DTYPES)} are")
    if "://" in str(out):
        raise DataError(f"packing writes to a local folder, not to {out}: copy the finished store there")
    if not 0 <= min_valid <= 1:
        raise ConfigError(f"--min-valid {min_valid}: a share, 0 to 1")
    splits = assign(reading.items, split)
    # Numbers, not images: a reading of millions makes each image anew when it is asked for.
    work = [(n, s) for n, s in enumerate(splits) if s is not None]
    if not work:
        raise DataError(_nothing(reading.refused))
    if all(s != "train" for _, s in work):
        raise DataError("no image belongs to the training split, which a store takes its statistics from")
    shape = (len(sensor.bands), *reading.tile)
    chunk = chunk or shards.chunk_side(shape, np.dtype(reading.dtype).itemsize)
    shard_size = max(1, min(SHARD_BYTES // (int(np.prod(shape)) * np.dtype(reading.dtype).itemsize), len(work)))
    begun = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sensor": sensor.to_dict(),
        "tile": list(reading.tile),
        "dtype": reading.dtype,
        "class_names": list(reading.class_names),
        "packing": {"split": asdict(split), "min_valid": min_valid, "chunk": chunk, "shard": shard_size},
        "items": _fingerprint(((reading.items[n], s) for n, s in work), reading.refused),
        "state": _state(reading.items[n] for n, _ in work),
        "complete": False,
    }
    folder = Path(out) / sensor.name
    with name_os_errors(folder):
        complete = _begin(Path(out), sensor.name, begun, resume)
    if complete:
        SensorStore(str(out), sensor.name, read_attributes(str(out), sensor.name) or {}).check_files()
        (folder / JOURNAL).unlink(missing_ok=True)
        return _report(Path(out), sensor.name, reading, began)

    cut = shards.Cut(shape, reading.dtype, chunk, shard_size)
    with name_os_errors(folder):
        cut.create(folder, len(work))
    loader = Loader(reading, scaling, cut, min_valid, workers or os.cpu_count() or 1)
    with (
        Journal(folder / JOURNAL, scaling.bands) as journal,
        closing(loader.run((reading.items[n], s) for n, s in work[journal.items :])) as pieces,
        Progress(f"packing {sensor.name}", len(work), journal.items, progress) as bar,
    ):
        while journal.items < len(work):
            shard: list[Loaded] = []
            line = Line()
            for item, part, loaded in pieces:
                line.items += 1
                if isinstance(loaded, Refusal):
                    line.refused.append((loaded.source, loaded.reason))
                    bar.advance()
                else:
                    shard.append(loaded)
                    line.add(item, part, loaded)
                    bar.advance(nbytes=loaded.nbytes)
                if len(shard) == shard_size:
                    break
            if shard:
                number = journal.images // shard_size
                cut.write(folder / "images", number, [piece.image for piece in shard])
                cut.write(folder / "valid", number, [piece.mask for piece in shard])
            journal.append(line, shard)
    with name_os_errors(folder):
        _finish(folder, journal, reading, split)
        _register(Path(out), sensor.name)  # another pack into the same store may have begun at the same moment
    return _report(Path(out), sensor.name, reading, began)


def _begin(out: Path, name: str, begun: dict[str, Any], resume: bool) -> bool:
    """Make or take up the group of a sensor; True where it is complete."""
    foreign = out.exists() and (not out.is_dir() or any(p.suffix != ".partial" for p in out.iterdir()))
    if foreign and not (out / "zarr.json").exists():
        raise DataError(f"{out} holds other files: give a new folder or a store")
    root = read_attributes(str(out))
    if root is not None:
        check_format(root, str(out))
    there = read_attributes(str(out), name) if root is not None else None
    if there is not None:
        check_format(there, str(out), name)
        complete = bool(there.get("complete"))
        if not complete and resume and there["format_version"] != FORMAT_VERSION:
            raise DataError(f"{out}: {name} was begun by an older dofa: begin it anew with --no-resume")
        ignored = {"complete", "format_version", *({"state"} if "state" not in there else ())}
        asked = {key: value for key, value in json.loads(json.dumps(begun)).items() if key not in ignored}
        changed = [key for key, value in asked.items() if there.get(key) != value]
        if not changed and (complete or resume):
            _register(out, name)
            return complete
        if complete or resume:
            what = "files that have changed since" if changed == ["state"] else "other images or with other options"
            raise DataError(
                f"{out} already holds {name}, {'packed' if complete else 'begun'} from {what}: pack into a new store, "
                + (f"or delete {out / name} first" if complete else "or begin anew with --no-resume")
            )
    shutil.rmtree(out / name, ignore_errors=True)
    _register(out, name)  # first, so that a sensor that was begun is never overlooked
    zarr.create_group(out / name, zarr_format=3, attributes=begun)
    return False


def _register(out: Path, name: str) -> None:
    """List a sensor in the root of its store: readers do not list folders."""
    root = read_attributes(str(out))
    names = sorted({*(root or {}).get("sensors", ()), name})
    attributes = sealed({"format": FORMAT, "format_version": FORMAT_VERSION, "sensors": names})
    if root is None:
        zarr.create_group(out, zarr_format=3, attributes=attributes)
    elif root["sensors"] != names:
        zarr.open_group(out, mode="r+").attrs.put(attributes)


def _finish(folder: Path, journal: Journal, reading: Reading, split: SplitConfig) -> None:
    """Cut the arrays to size, write the columns, and say that the store is complete."""
    if not (folder / "zarr.json").is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))  # removed in the meantime
    group = zarr.open_group(folder, mode="r+", zarr_format=3)
    total, count = journal.total, journal.images
    refused = [*reading.refused, *(Refusal(*r) for r in total.refused)]
    if not count:
        raise DataError(_nothing(refused))
    images, masks = zarr.open_array(folder / "images"), zarr.open_array(folder / "valid")
    for array in (images, masks):
        array.resize((count, *array.shape[1:]))
    scaling = reading.sensor.scaling
    assert scaling is not None  # checked by pack
    stats = journal.stats
    kept = set(total.split)
    places = set(total.place)
    if split.method == "place" and len(places) > 1 and not {"train", "val"} <= kept:
        # Every image of one side was refused, which is known only now: deal the places that are left.
        held_out = held_out_places(places, split)
        total.split = ["val" if p in held_out else "train" for p in total.place]
        stats = RunningStats(scaling.bands)
        for n in range(count):
            if total.split[n] == "train":
                stats.update(scaling.physical(np.asarray(images[n])), np.asarray(masks[n], bool))
    if not total.partly_valid:
        shutil.rmtree(folder / "valid")
    columns = {
        "source": np.array(total.source, np.dtypes.StringDType()),
        "place": np.array(total.place, np.dtypes.StringDType()),
        "split": np.array(total.split, np.dtypes.StringDType()),
        "labels": np.array(total.labels, np.int64),
    }
    for name, values in columns.items():
        group.create_array(name, data=values, chunks=(min(count, COLUMN_CHUNK),), overwrite=True)
    lines = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in refused)
    write_atomically(folder / "refused.jsonl", lines.encode())
    group.update_attributes(
        {
            "columns": {name: column_digest(values) for name, values in columns.items()},
            "scaling": scaling.with_stats(list(stats.mean), list(stats.std), "corpus").to_dict(),
            "statistics": {"pixels": stats.count, "minimum": stats.minimum.tolist(), "maximum": stats.maximum.tolist()},
            "counts": {
                "images": count,
                "splits": dict(sorted(Counter(total.split).items())),
                "places": {
                    s: len({p for p, q in zip(total.place, total.split, strict=True) if q == s})
                    for s in sorted(set(total.split))
                },
                "refused": len(refused),
                "gap": len(reading.items) - total.items,
                "partly_valid": total.partly_valid,
                "labelled": sum(label >= 0 for label in total.labels),
            },
            "digest": journal.digest,
        }
    )
    for file in folder.rglob("*.partial"):  # of a kill while Zarr wrote
        file.unlink()
    for file in folder.rglob("zarr.json"):
        shards.sync(file)
    group.attrs.put(sealed({**group.attrs.asdict(), "complete": True}))
    shards.sync(folder / "zarr.json")
    journal.path.unlink()


def _report(out: Path, name: str, reading: Reading, began: float) -> PackReport:
    """What a finished store says about itself."""
    attributes = read_attributes(str(out), name)
    assert attributes is not None  # just written or just checked
    counts = attributes["counts"]
    notes = list(reading.notes)
    if len(counts["splits"]) == 1 and attributes["packing"]["split"]["method"] == "place":
        notes.append("all images show one place, so nothing is held out: --split blocks holds out a part of it")
    file = out / name / "refused.jsonl"
    try:
        lines = read_bytes(file, largest=2**30).splitlines()
        refused = [Refusal(**parse_json(line, str(file))) for line in lines]
    except (FileNotFoundError, TypeError) as error:
        raise DataError(f"{file} is missing or damaged ({error}): copy the store again, or pack it anew") from None
    return PackReport(
        store=str(out),
        sensor=name,
        images=counts["splits"],
        places=counts["places"],
        refused=refused,
        gap=counts["gap"],
        notes=notes,
        constant=SensorStore(str(out), name, attributes).scaling.constant,
        seconds=time.monotonic() - began,
    )


def _nothing(refused: Sequence[Refusal]) -> str:
    if not refused:
        return "nothing to pack: no image was found"
    return (
        f"nothing to pack: all {len(refused)} images are refused, the first, {refused[0].source}: {refused[0].reason}"
    )


def _state(items: Iterable[Item]) -> str:
    """What tells the files of images from those that bear the same names later: sizes and times of change."""
    digest = hashlib.sha256()
    before: tuple[str, ...] = ()
    for item in items:
        if item.files != before:  # the windows of one image follow each other
            before = item.files
            digest.update(json.dumps([_stamps(file) for file in item.files]).encode())
    return digest.hexdigest()


def _stamps(path: str) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of every file in a folder."""
    try:
        found = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
        return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in found]
    except OSError:
        return []


def _fingerprint(work: Iterable[tuple[Item, Split]], refused: Sequence[Refusal]) -> str:
    """Names the images of a pack, so that only the same pack continues it."""
    digest = hashlib.sha256()
    for item, split in work:
        digest.update(json.dumps([item.source, item.place, split]).encode())
    digest.update(json.dumps([asdict(r) for r in refused]).encode())
    return digest.hexdigest()
