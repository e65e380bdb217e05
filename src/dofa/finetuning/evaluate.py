"""`dofa evaluate`: what it is asked, and what it found. The work is in `answers`, imported when there is some."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dofa.datasets.labelled import LabelledImages, Part
from dofa.errors import ConfigError
from dofa.finetuning.settings import Precision
from dofa.version import code_version

if TYPE_CHECKING:
    from dofa.evaluation.scores import Score
    from dofa.model.encoder import DOFA
    from dofa.model.heads import Head
else:
    DOFA = Head = Score = Any  # torch takes seconds, and --help needs none

FORMAT_VERSION = 1
OTHERS = ("random", "teacher", "timm", "torchgeo")  # weights of `dofa finetune` that no head belongs to


@dataclass(frozen=True)
class Evaluation:
    """What a head is worth.

    Attributes:
        score: with a table by class and the confusion matrix.
        setting: head, data and part, as plain values.
        notes: what the reader of the numbers should know.
        overlap: whether the head learned from these images, in words.
    """

    score: Score
    setting: dict[str, Any]
    notes: tuple[str, ...]
    overlap: str

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON; scores are shares, 0–1."""
        return {
            "format_version": FORMAT_VERSION,
            **self.score.to_dict(),
            "code": code_version(),
            **self.setting,
            "notes": list(self.notes),
        }

    @property
    def line(self) -> str:
        """The score, and on the same line whether the head learned from these images."""
        data = self.setting["data"]
        return (
            f"{data['name']}, {data['part']}, {self.score.images} images{self.overlap}: "
            f"{self.score.metric} {self.score.percent}"
        )

    def print(self) -> None:
        """The score, the table by class and notes, to the terminal."""
        console = Console()
        console.print(self.line, highlight=False, markup=False, soft_wrap=True)
        console.print(self.score.table())
        for note in self.notes:
            console.print(f"note: {note}", highlight=False)


def evaluate(
    head: str | Path | Head,
    weights: str | DOFA | None,
    data: str | LabelledImages,
    *,
    split: Part | None = None,
    stride: int | None = None,
    out: str | Path | None = None,
    batch: int = 16,
    precision: Precision = "float32",
    seed: int = 0,
    device: str | None = None,
) -> Evaluation:
    """Score a saved head on labelled images that it did not learn from.

    Images that the head was trained on, or that chose its epoch, are left out; where there are no others they are
    scored all the same and the line of the score says so.

    Args:
        head: folder with head.json and head.safetensors, as dofa probe and dofa finetune save it.
        weights: model folder or name: the encoder that the head was trained on; none for a head of band statistics.
        data: labelled images, as `dofa probe` takes them; its classes are matched by name.
        split: train, val or test of the published split, or of the head's own where none is published; all takes every
            image; unless said test, or all where there is no split.
        stride: of a linear segmentation head: pixels between the shifted passes that are averaged, a divisor of the
            patch; what the probe judged it with unless said, and one pass where a fine-tuning saved it.
        out: folder for evaluate.json and, of one class an image or pixel, confusion.png; of pixels panels.png, too: a
            few images, their labels, and what was answered.
        batch: images at a time.
        precision: float32 or bf16.
        seed: of the bootstrap.
        device: cpu, cuda, cuda:1, …; CUDA where there is one.

    Returns:
        The score with its interval, by class, and the confusion matrix.

    Raises:
        CheckpointError: another encoder, or a folder that is no head.
        ConfigError: weights that are no DOFA encoder, another task or other bands than the head's, or a stride that
            does not fit.
        DataError: classes that the head does not know, or no images in the part.
    """
    if seed < 0 or batch < 1:
        raise ConfigError(f"seed is {seed} and batch {batch}: whole numbers, at least 0 and 1")
    if isinstance(weights, str) and (kind := weights.partition(":")[0]) in OTHERS and ":" in weights:
        raise ConfigError(
            f"--weights {weights}: a head belongs to the DOFA encoder it was trained on, and never to one of {kind}: "
            "pass that encoder's folder (of a fine-tuning that changed it: model, beside head)"
        )
    from dofa.finetuning.predictions import score_head

    return score_head(
        head, weights, data, split, stride, None if out is None else Path(out), batch, precision, seed, device
    )
