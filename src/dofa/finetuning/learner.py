"""What a fine-tuning trains: an encoder with a decoder on its maps, or a linear layer on its pooled vector."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from dofa.datasets.labelled import IGNORE, LabelledImages
from dofa.errors import ConfigError
from dofa.evaluation.backbones import Backbone
from dofa.finetuning.settings import FinetuneConfig
from dofa.model.decoders import DPTDecoder, FCNHead, LinearDecoder, UPerNet, on_image, resize
from dofa.model.heads import new_decoder
from dofa.model.lora import add_lora
from dofa.model.vit import VisionTransformer, block_indices, set_drop_path
from dofa.train.losses import cross_entropy, soft_margin

MOMENTUM = 0.1  # of batch norms' running statistics
CHANNELS = {"upernet": 512, "dpt": 256}  # the published numbers
LEVELS = (1 / 3, 1 / 2, 2 / 3, 1)  # of the depth: blocks 3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, as the paper's


class Learner(nn.Module):
    """An encoder and what answers from its features; `train.loop` feeds it micro-batches."""

    def __init__(self, backbone: Backbone, data: LabelledImages, tuning: FinetuneConfig) -> None:
        super().__init__()
        self.backbone, self.task, self.sensor = backbone, data.task, data.sensor
        self.dense, self.frozen = data.task == "segmentation", tuning.method == "frozen"
        if not self.dense and (tuning.decoder != "linear" or tuning.blocks is not None):
            raise ConfigError(
                f"--decoder and --blocks are for segmentation; {data.name} is {data.task}: leave them out"
            )
        self.levels = levels(backbone.depth, tuning) if self.dense else []
        self.weight = tuning.auxiliary if tuning.decoder == "upernet" else 0.0
        self.encoder = backbone.module
        adapt(self.encoder, backbone.name, tuning)
        classes, width = len(data.class_names), backbone.width
        self.decoder: LinearDecoder | UPerNet | DPTDecoder
        if tuning.decoder == "linear":
            self.decoder = LinearDecoder([width] * max(1, len(self.levels)), classes)
        else:
            self.decoder = new_decoder(tuning.decoder, width, classes, tuning.channels or CHANNELS[tuning.decoder])
        self.auxiliary = FCNHead(width, classes) if self.weight else None
        heads = [part for part in (self.decoder, self.auxiliary) if part is not None]
        self.norms = [m for part in heads for m in part.modules() if isinstance(m, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays as it is."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        """What the decoder reads: (B, D, h, w) a level, or the pooled vector as a map of one place."""
        with torch.no_grad() if self.frozen else nullcontext():
            if self.dense:
                return self.backbone.maps(images, self.sensor, self.levels)
            return [self.backbone.pooled(images, self.sensor)[:, :, None, None]]

    def answer(self, maps: Sequence[Tensor], shape: tuple[int, int], head: nn.Module) -> Tensor:
        """Logits (B, K), or (B, K, H, W) of images of that shape.

        Args:
            maps: (B, D, h, w) a level, or pooled vectors as maps of one place.
            shape: (H, W).
            head: the decoder, or the auxiliary head.
        """
        if not self.dense:
            return cast(Tensor, head(maps, (1, 1)))[:, :, 0, 0]
        covered = self.backbone.patch * maps[0].shape[-2], self.backbone.patch * maps[0].shape[-1]
        return on_image(head(maps, covered), shape, self.backbone.patch_offset)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to (B, K) or (B, K, H, W) float32."""
        return self.answer(self.maps(images), (images.shape[-2], images.shape[-1]), self.decoder).float()

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The task's.

        Args:
            logits: as `answer` gives them.
            label: (B,), (B, K) of 0 and 1, or (B, H, W).
        """
        if self.task == "multilabel":
            return soft_margin(logits, label)
        if self.dense and logits.shape[-2:] != label.shape[-2:]:  # features of resized images, masks as they came
            logits = resize(logits, label.shape[-2:])
        return cross_entropy(logits, label, IGNORE if self.dense else None)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The mean loss of a micro-batch: of images, or of `maps` computed before."""
        if self.training:
            # Running statistics start as the mean of the batches seen: with a fixed momentum those of a short training
            # would still be the 0 and 1 they begin with.
            seen = int(cast(Tensor, self.norms[0].num_batches_tracked))
            for norm in self.norms:
                norm.momentum = max(MOMENTUM, 1 / (seen + 1))
        label = batch["label"]
        if "maps" in batch:
            maps, shape = batch["maps"], batch["shape"]
        else:
            maps, shape = self.maps(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        loss = self.loss(self.answer(maps, shape, self.decoder), label)
        if self.auxiliary is not None:
            loss = loss + self.weight * self.loss(self.answer(maps, shape, self.auxiliary), label)
        return {"loss": loss}


def levels(depth: int, tuning: FinetuneConfig) -> list[int]:
    """The blocks a segmentation reads, from 0.

    Args:
        tuning: blocks and decoder as the user said.

    Raises:
        ConfigError: no such block, or not four for upernet and dpt.
    """
    if tuning.blocks is not None:
        found = block_indices(tuning.blocks, depth)
    elif tuning.decoder == "linear":
        found = [depth - 1]
    else:
        found = [max(0, round(depth * share) - 1) for share in LEVELS]
    if tuning.decoder != "linear" and (len(found) != len(LEVELS) or found != sorted(found)):
        raise ConfigError(f"--blocks: {tuning.decoder} reads {len(LEVELS)} blocks from the shallowest on, not {found}")
    return found


def adapt(encoder: nn.Module, name: str, tuning: FinetuneConfig) -> None:
    """Freeze an encoder, give it adapters, or let all of it learn.

    Args:
        encoder: changed in place.
        tuning: method and its settings.

    Raises:
        ConfigError: it cannot.
    """
    if tuning.method == "frozen":
        encoder.requires_grad_(False)
        return
    vit = transformer(encoder)
    wanted = {
        "--method lora": tuning.method == "lora", "--drop-path": tuning.drop_path > 0,
        "--layer-decay": tuning.layer_decay != 1, "--checkpointing": tuning.checkpointing,
    }  # fmt: skip
    if vit is None:
        if asked := [flag for flag, on in wanted.items() if on]:
            raise ConfigError(f"{name} has no blocks that dofa knows: leave out {', '.join(asked)}")
    else:
        vit.set_grad_checkpointing(tuning.checkpointing)
        if tuning.method == "lora":
            add_lora(vit, tuning.rank)
        set_drop_path(vit, tuning.drop_path)
    if not any(p.requires_grad for p in encoder.parameters()):
        raise ConfigError(f"{name} is frozen for good: --method frozen")


def transformer(encoder: nn.Module) -> VisionTransformer | None:
    """Our own blocks in a module, None where there are others."""
    return next((part for part in encoder.modules() if isinstance(part, VisionTransformer)), None)


def freeze_unreached(learner: Learner, images: Tensor, label: Tensor) -> None:
    """Leave parameters alone that no loss reaches (a norm behind the last level): they have no state to keep.

    Args:
        learner: on the CPU, in any mode.
        images: two of the training images.
    """
    was = learner.training
    learner.eval()  # no draw, no batch statistics
    learner({"image": images, "label": label})["loss"].backward()
    for parameter in learner.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None
    learner.train(was)
