"""Which of the images to be scored a head has learned from: those are left out, or the score says so."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dofa.addresses import redact
from dofa.datasets.fingerprints import image_digest, image_digests, known_ground, window_hashes, window_rate
from dofa.datasets.labelled import Ints, LabelledImages, Part
from dofa.errors import ConfigError, DataError
from dofa.evaluation.pixel_probe import cut_blocks
from dofa.model.head_split import ROLES, UNKNOWN, Role, SplitRecord

TRAIN, VAL, TEST, UNUSED = range(len(ROLES))


def record_split(
    data: LabelledImages,
    used: Mapping[Role, Ints],
    seed: int | None,
    whole: LabelledImages | None = None,
    block_side: int | None = None,
) -> SplitRecord:
    """What a head keeps of its data set.

    Args:
        data: the images, or the blocks of a single one.
        used: rows by what they were used for; all others are unused.
        seed: of the split; None where it was published.
        whole: the image that was cut into blocks; None where images are whole.
        block_side: of the blocks, as `cut_blocks` takes it.
    """
    roles = np.full(len(data), UNUSED, np.uint8)
    for role, rows in used.items():
        roles[rows] = ROLES.index(role)
    rate, digests, windows = window_rate(data), np.empty(len(data), np.uint64), [np.zeros(0, np.uint64)]
    for row in range(len(data)):
        raw = data.read(row)
        digests[row] = image_digest(raw)
        if roles[row] in (TRAIN, VAL):
            windows.append(window_hashes(raw, rate))
    if whole is not None:  # who scores the image uncut scores what was learned from
        digests, roles = np.append(digests, image_digests(whole, np.arange(1))), np.append(roles, np.uint8(TRAIN))
    record = SplitRecord.of(digests, roles, seed, None if whole is None else block_side or 0)
    return replace(record, windows=np.unique(np.concatenate(windows)), rate=rate)


def split_table(data: LabelledImages, used: Mapping[Role, Ints]) -> bytes:
    """A CSV for people: each image, its part of the split (`unused` where labels were left out), and its place.

    Args:
        used: rows by what they were used for.
    """
    part = np.full(len(data), "unused", object)
    for role, rows in used.items():
        part[rows] = role
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "part", "place"))
    places = data.places or ("",) * len(data)
    table.writerows((redact(str(source)), *rest) for source, *rest in zip(data.sources, part, places, strict=True))
    return text.getvalue().encode()


@dataclass(frozen=True)
class TestImages:
    """Images to score, and whether the head knows them.

    Attributes:
        rows: (n,) images to score.
        part: train, val, test or all of the data set.
        learned: how many of `rows` the head was trained or chosen on: none or all; None where the head does not say.
        left_out: images of the part that are not scored because the head was trained or chosen on them, or on part of
            the ground they show.
        tested: how many of `rows` are the head's own test images.
    """

    rows: Ints
    part: Part
    learned: int | None
    left_out: int
    tested: int

    @property
    def words(self) -> str:
        """What stands behind the number of images, on the line of the score."""
        if self.learned is None:
            return "; which images this head learned from is not recorded"
        if self.learned:
            return " that this head LEARNED FROM or was chosen by (no score of unseen images)"
        rest = f"; {self.left_out} that it learned from are left out" if self.left_out else ""
        return f" that this head did not learn from{rest}"

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON."""
        return {
            "judged": len(self.rows), "learned_from": self.learned, "left_out": self.left_out,
            "own_test": self.tested,
        }  # fmt: skip


def as_blocks(data: LabelledImages, record: SplitRecord | None) -> LabelledImages:
    """A single image cut into the blocks that a head was trained on, where it is that image; else the images as given.

    Args:
        data: images to score, bands in the head's order.
    """
    if record is None or record.block_side is None or len(data) != 1 or data.task != "segmentation":
        return data
    try:
        blocks, _ = cut_blocks(data, record.block_side or None)
    except ConfigError:  # another, smaller image
        return data
    known = record.roles_of(image_digests(blocks, np.arange(len(blocks)))) != UNKNOWN
    return blocks if known.any() else data


def choose_test_images(data: LabelledImages, record: SplitRecord | None, part: Part | None) -> TestImages:
    """The images of a part that a head did not learn from; all of them, and said so, where there are no others.

    Args:
        data: images to score, bands in the head's order.
        record: of the head; None where it has none.
        part: of the published split, or of the head's own where none is published; None for test, or all images where
            there is no split.

    Raises:
        DataError: a part, and neither the data set nor the head knows of one.
    """
    everything = np.arange(len(data))
    published = None if data.splits is None or part == "all" else np.array(data.splits)
    if published is not None:
        wanted = part or ("test" if (published == "test").any() else "all")
        rows = everything if wanted == "all" else np.flatnonzero(published == wanted)
    else:
        rows, wanted = everything, part or "all"
    roles = None if record is None else record.roles_of(image_digests(data, rows))
    own = part not in (None, "all") and published is None
    if own and (roles is None or not (roles != UNKNOWN).any()):
        raise DataError(f"{data.name} has no published split: --split all judges all its images")
    if roles is None:
        return TestImages(rows, wanted, None, 0, 0)
    if own and part is not None and part != "all":
        chosen = roles == ROLES.index(part)
        rows, roles = rows[chosen], roles[chosen]
        if not len(rows):
            raise DataError(f"{data.name}: none of its images is in the {part} part of the head's split: --split all")
    new = np.flatnonzero(roles == UNKNOWN)
    if record is not None and len(new):  # cut elsewhere from the same pixels
        met = known_ground(data, rows[new].tolist(), record.windows, record.rate)
        roles[new[met]] = TRAIN
    learned = (roles == TRAIN) | (roles == VAL)
    if part is None and published is None and (roles == TEST).any():
        learned_rows = int(learned.sum())
        kept = (roles == TEST) | (roles == UNKNOWN)  # its own test, and what is new
        return TestImages(rows[kept], "test", 0, learned_rows, int((roles == TEST).sum()))
    if len(rows) and learned.all():
        return TestImages(rows, wanted, len(rows), 0, 0)
    return TestImages(rows[~learned], wanted, 0, int(learned.sum()), int((roles == TEST).sum()))
