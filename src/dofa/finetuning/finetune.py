"""`dofa finetune`: what it is asked, and what it found. The run is in `finetuning`, imported when there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dofa.datasets.labelled import LabelledImages
from dofa.errors import ConfigError
from dofa.finetuning.settings import DecoderName, Method, Precision, resolve_settings
from dofa.version import code_version

if TYPE_CHECKING:
    from dofa.model.encoder import DOFA
else:
    DOFA = Any  # torch takes seconds, and --help needs none

FORMAT_VERSION = 1
RESULT, HEAD, MODEL, PANELS, SPLIT = "finetune.json", "head", "model", "panels.npz", "split.csv"


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning found.

    Attributes:
        test: of the epoch that did best on validation, on images of which nothing was learned or chosen.
        validation: score of every epoch.
        epoch: the one that was kept, from 1.
        setting: data, model and settings, as plain values.
        seed: of everything that was drawn.
        seconds: it took, interruptions left out.
        notes: what the reader of the numbers should know.
        folder: with `head`, and `model` where the encoder has changed.
        drawn: scores of the test's bootstrap draws: those of two models on the same images are paired.
    """

    test: dict[str, Any]
    validation: tuple[float, ...]
    epoch: int
    setting: dict[str, Any]
    seed: int
    seconds: float
    notes: tuple[str, ...]
    folder: Path
    drawn: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain form, for JSON; scores are shares, 0–1."""
        return {
            "format_version": FORMAT_VERSION,
            **self.test,
            "seed": self.seed,
            "epoch": self.epoch,
            "validation": list(self.validation),
            "code": code_version(),
            "seconds": self.seconds,
            **self.setting,
            "notes": list(self.notes),
        }

    def print(self) -> None:
        """The score, notes and where things lie, to the terminal."""
        from dofa.evaluation.cross_validation import Interval
        from dofa.evaluation.metrics import class_table
        from dofa.evaluation.scores import percent

        console, data = Console(), self.setting["data"]
        score = percent(Interval(**self.test["score"]))
        told = f"{data['name']}: test {self.test['metric']} {score}, {data['test']} images, epoch {self.epoch}"
        console.print(told, highlight=False)
        if self.test["classes"]:
            console.print(class_table(self.test["classes"]))
        for note in self.notes:
            console.print(f"note: {note}", highlight=False)
        for folder in (HEAD, MODEL):
            if (self.folder / folder).is_dir():
                console.print(f"{folder}: {self.folder / folder}", highlight=False)


def finetune(
    weights: str | DOFA,
    data: str | LabelledImages,
    *,
    out: str | Path,
    recipe: str | None = None,
    method: Method | None = None,
    decoder: DecoderName | None = None,
    blocks: Sequence[int] | None = None,
    channels: int | None = None,
    auxiliary: float | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    accumulate: int | None = None,
    lr: float | None = None,
    warmup_epochs: float | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    drop_path: float | None = None,
    clip: float | None = None,
    rank: int | None = None,
    augment: bool | None = None,
    crop: float | None = None,
    size: int | None = None,
    fraction: float | None = None,
    stats: str | None = None,
    checkpointing: bool | None = None,
    precision: Precision | None = None,
    bands: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> FinetuneResult:
    """Adapt a model to a task of classes, several labels or masks, and test it.

    Args:
        weights: a model folder or released name; random:MODEL#SEED (with --method full: from scratch), teacher:FILE, or
            another that `open_backbone` knows.
        data: labelled images, as `dofa probe` takes them (docs/datasets.md).
        out: folder for finetune.json, split.csv (which image was for what), log.jsonl, head and, where the encoder
            changes, model.
        recipe: a YAML file of settings, or full, full-upernet, linear, lora, upernet; what is said beside it wins.
        method: frozen: only decoder and head learn; full: everything; lora: a low-rank change of the encoder.
        decoder: of segmentation: linear, upernet or dpt.
        blocks: whose outputs a decoder reads.
        channels: of the decoder; 512 (upernet) or 256 (dpt) unless said.
        auxiliary: weight of the loss of the FCN beside upernet; 0.4 unless said, 0 for none.
        epochs: passes over the training images; 20 unless said.
        batch: images an update; 64 unless said, or all where there are fewer.
        accumulate: micro-batches an update is computed in.
        lr: highest learning rate; 5e-3 frozen (5e-2 under linear), 1e-4 full, 1e-3 lora unless said.
        warmup_epochs: over which it grows.
        weight_decay: of matrices; 0.05 unless said.
        layer_decay: factor on the rate from block to block towards the input.
        drop_path: largest probability that a residual branch is left out.
        clip: largest norm of the gradient.
        rank: of lora; 8 unless said.
        augment: crops, flips and quarter turns; on unless said, and without effect on cached features.
        crop: smallest share of an image's area that a crop keeps; 0.8 unless said.
        size: side in pixels the images are resized to.
        fraction: of the training labels.
        stats: whose statistics normalise; dataset computes them from the training images.
        checkpointing: compute activations again in the backward pass: less memory, a third more time.
        precision: float32 unless said, or bf16.
        bands: names of the bands to use, in order; all where absent.
        seed: of the split, the labels kept, weights that start at random, order, augmentation and bootstrap.
        device: cpu, cuda, cuda:1, …; CUDA where there is one.
        cache: folder of the feature cache; where absent, `cache` in `out`.
        resume: continue from the last epoch in `out`, or return what is finished there.
        overwrite: begin anew where `out` holds a run.

    Returns:
        The findings; the folders are written.

    Raises:
        DofaError: any input or settings that cannot be used; see the readers, `FinetuneConfig`, `Learner` and
            `three_way_split`.
    """
    said = {
        "method": method, "decoder": decoder, "blocks": blocks, "channels": channels, "auxiliary": auxiliary,
        "epochs": epochs, "batch": batch, "accumulate": accumulate, "lr": lr, "warmup_epochs": warmup_epochs,
        "weight_decay": weight_decay, "layer_decay": layer_decay, "drop_path": drop_path, "clip": clip, "rank": rank,
        "augment": augment, "crop": crop, "size": size, "fraction": fraction, "stats": stats,
        "checkpointing": checkpointing, "precision": precision,
    }  # fmt: skip
    tuning = resolve_settings(recipe, said)
    if seed < 0:
        raise ConfigError(f"seed is {seed}: at least 0")
    try:
        from dofa.finetuning.run import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lightning_fabric":
            raise
        raise ConfigError(
            f'fine-tuning needs {error.name}, which is not installed: pip install "dofa[train]"'
        ) from None
    return run(
        weights, data, Path(out), tuning, bands=bands, seed=seed, device=device,
        cache=None if cache is None else Path(cache), resume=resume, overwrite=overwrite,
    )  # fmt: skip
