"""The epochs of a fine-tuning: `train.loop` between validations, the best one's weights kept beside the state."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import Tensor

from dofa.datasets.labelled import Ints
from dofa.datasets.splits import ThreeWaySplit
from dofa.errors import CheckpointError
from dofa.evaluation.frozen_features import encode
from dofa.evaluation.scores import METRICS, Score, logits_of, score_predictions
from dofa.finetuning.learner import Learner
from dofa.finetuning.samples import Samples, micro_batch, order, training_batches
from dofa.finetuning.settings import FinetuneConfig
from dofa.io import write_atomically
from dofa.model.model_folder import read_safetensors
from dofa.train.checkpoint import checkpoints, load_state, read_run_info, remove_partial, save_state
from dofa.train.config import OptimConfig
from dofa.train.log import RunLog
from dofa.train.loop import train
from dofa.train.optim import layer_decay, learning_rate, parameter_groups

STATE, BEST = "checkpoints", "best.safetensors"


@dataclass
class Epochs:
    """The epochs of one fine-tuning.

    Attributes:
        fabric: launched, of one process: batch norms and the choice of an epoch want all images in one place.
        learner: the model.
        samples: the images.
        rows: which of them are for what.
        tuning: the settings.
        batch: images an update.
        seed: of every draw.
        folder: for the log, the state and the best epoch's weights.
        digest: of what the run is, kept beside the state.
        cache: (D, h, w) features a level and the target of every image by row, where they are computed once.
    """

    fabric: Fabric
    learner: Learner
    samples: Samples
    rows: ThreeWaySplit
    tuning: FinetuneConfig
    batch: int
    seed: int
    folder: Path
    digest: dict[str, Any]
    cache: dict[int, list[Tensor]] | None = None

    def learn(self) -> tuple[list[float], int, float]:
        """Train, and leave the best epoch's weights in the learner.

        Returns:
            The validation score of every epoch, the epoch kept (from 1), and the seconds it took.
        """
        tuning, learner = self.tuning, self.learner
        per_epoch = len(self.rows.train) // self.batch
        updates = tuning.epochs * per_epoch
        optim = OptimConfig(
            lr=tuning.rate, betas=(0.9, 0.999), weight_decay=tuning.weight_decay, clip=tuning.clip,
            warmup_updates=round(tuning.warmup_epochs * per_epoch),
        )  # fmt: skip
        if tuning.layer_decay == 1:
            groups = parameter_groups(learner, tuning.weight_decay)
        else:
            groups = layer_decay(learner, tuning.layer_decay, tuning.weight_decay)
        adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=tuning.rate, betas=optim.betas, fused=True)
        model = self.fabric.setup_module(learner)
        optimizer = self.fabric.setup_optimizers(adam)
        state = self.folder / STATE
        scores: list[float] = []
        start, best, seconds = 0, 0, 0.0
        remove_partial(state)
        for newest in checkpoints(state)[-1:]:
            facts = read_run_info(newest)
            load_state(newest, learner, adam)
            start, best, scores, seconds = facts["update"], facts["best"], facts["validation"], facts["seconds"]
        metric = METRICS[self.samples.data.task]
        losses: list[float] = []
        began = time.perf_counter()
        columns = ("update", "epoch", "loss", "lr", metric, "seconds")
        with RunLog(self.folder, columns, start, updates) as log:
            for step in train(
                self.fabric, model, optimizer, self.batches(range(start, updates)),
                sensors=[self.samples.data.sensor.name], start=start, updates=updates, accumulation=tuning.accumulate,
                rate=lambda update: learning_rate(update, updates, optim), clip=tuning.clip, seed=self.seed,
                describe=lambda batch: ", ".join(batch["source"][:3]),
            ):  # fmt: skip
                log.advance(step.update)
                losses += step.losses.values()
                if step.update % per_epoch:
                    continue
                scores.append(self.score(self.rows.val).score.value)
                if not best or scores[-1] > scores[best - 1] or np.isnan(scores[best - 1]):
                    best = len(scores)
                    self.keep(best)
                seconds, began = seconds + time.perf_counter() - began, time.perf_counter()
                row = {"update": step.update, "epoch": len(scores), "loss": float(np.mean(losses)), "lr": step.lr}
                log.write({**row, metric: scores[-1], "seconds": seconds})
                losses = []
                facts = {"best": best, "validation": scores, "seconds": seconds, "digest": self.digest}
                save_state(state, step.update, learner, adam, facts, keep=1, write=True)
                for file in self.folder.glob(f"*.{BEST}"):
                    if file.name != f"{best}.{BEST}":
                        file.unlink()
        self.load(best)
        return scores, best, seconds

    def batches(self, updates: range) -> Iterator[dict[str, Any]]:
        """Micro-batches of some updates: of images, or of features computed before."""
        crop = self.tuning.crop if self.tuning.augment else None
        if self.cache is None:
            return training_batches(
                self.samples, self.rows.train, updates, batch=self.batch, accumulate=self.tuning.accumulate,
                crop=crop, seed=self.seed,
            )  # fmt: skip
        return self.cached_batches(updates)

    def cached_batches(self, updates: range) -> Iterator[dict[str, Any]]:
        """Micro-batches of features."""
        assert self.cache is not None
        count = self.batch // self.tuning.accumulate
        for update in updates:
            chosen = order(self.rows.train, self.batch, update, self.seed)
            for part in range(self.tuning.accumulate):
                rows = chosen[part * count : (part + 1) * count]
                maps, targets = self.features(rows.tolist())
                batch = micro_batch(self.samples.data, maps[0], targets, rows, part)
                yield {**batch, "maps": maps, "shape": self.samples.shape}

    def features(self, rows: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Cached maps of images, a level each, and their targets."""
        assert self.cache is not None
        *maps, targets = (torch.stack(parts) for parts in zip(*(self.cache[row] for row in rows), strict=True))
        return maps, targets

    def score(self, rows: Ints) -> Score:
        """Of the learner as it is, on images as they are."""
        learner, device = self.learner.eval(), self.fabric.device
        answers = self.cached_answers(rows) if self.cache is not None else logits_of(
            learner.logits, self.samples.batch, rows, batch=self.batch // self.tuning.accumulate, device=device,
            bf16=self.tuning.precision == "bf16",
        )  # fmt: skip
        found = score_predictions(answers, self.samples.data, rows, self.seed)
        learner.train()
        return found

    def cached_answers(self, rows: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits from cached features, with their targets."""
        for start in range(0, len(rows), self.batch):
            maps, targets = self.features(rows[start : start + self.batch].tolist())
            with torch.no_grad():
                on_device = [level.to(self.fabric.device) for level in maps]
                logits = self.learner.answer(on_device, self.samples.shape, self.learner.decoder)
            yield logits.float().cpu(), targets

    def keep(self, epoch: int) -> None:
        """Write what this epoch learned."""
        learnt = {name for name, p in self.learner.named_parameters() if p.requires_grad}
        still = {name for name, p in self.learner.named_parameters() if not p.requires_grad}
        state = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.learner.state_dict().items()
            if name in learnt or name not in still
        }
        data, file = safetensors.torch.save(state), self.folder / f"{epoch}.{BEST}"
        if not self.folder.is_dir():  # which would be made again, without its log
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        write_atomically(file, data)

    def load(self, epoch: int) -> None:
        """Put back what an epoch learned."""
        file = self.folder / f"{epoch}.{BEST}"
        try:
            state = read_safetensors(file)
        except FileNotFoundError:
            raise CheckpointError(f"{file} is missing: begin the run anew with --overwrite") from None
        own = self.learner.state_dict()
        wrong = [name for name, tensor in state.items() if name not in own or own[name].shape != tensor.shape]
        if wrong or not state:
            raise CheckpointError(f"{file} does not fit the model: begin the run anew with --overwrite")
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)


def features_once(
    learner: Learner, samples: Samples, tuning: FinetuneConfig, rows: ThreeWaySplit, device: torch.device, cache: Path
) -> dict[int, list[Tensor]]:
    """Frozen features of all images that a run looks at, with their targets, by row: (D, h, w) a level, on the CPU.

    Pooled vectors are kept in the feature cache, maps in memory.

    Args:
        samples: the images as the model takes them.
        tuning: settings of the run.
        rows: images to learn from, to choose by and to test.
        device: where the encoder runs.
        cache: folder of pooled vectors.
    """
    data, wanted = samples.data, np.concatenate([rows.train, rows.val, rows.test])
    bf16 = tuning.precision == "bf16"
    if not learner.dense:
        found = encode(
            learner.backbone, data, samples.scaling, size=tuning.size, precision=tuning.precision, device=str(device),
            cache=cache,
        )["pooled"]  # fmt: skip
        labels = torch.as_tensor(data.labels)
        return {row: [torch.from_numpy(found[row])[:, None, None], labels[row]] for row in wanted.tolist()}
    out = {}
    learner.to(device).eval()
    for start in range(0, len(wanted), tuning.batch):
        part = wanted[start : start + tuning.batch].tolist()
        images, masks = samples.batch(part)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            maps = learner.maps(images.to(device))
        for i, row in enumerate(part):
            out[row] = [*(level[i].float().cpu().clone() for level in maps), masks[i]]
    learner.train()
    return out
