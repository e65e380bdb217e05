"""Arithmetic of one micro-batch, forward and backward, from shapes alone: no torch, no model, no data.

Counted is what matrix products do in our own step: two operations for each multiply-and-add; backward twice as much as
forward, but once as much where the input is pixels, which need no gradient; recomputed blocks
(`model.gradient_checkpointing`) once more. Not counted: norms, activations, softmax, targets, the optimiser, and what a
GPU's fused attention computes anew in its backward pass. `tests/train/test_cost.py` compares all this with what PyTorch
counts on real steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dofa.errors import ConfigError
from dofa.model.config import DecoderConfig, DistillConfig, EncoderConfig, MaskConfig

TRAINED = 3  # forward, and backward to the input and to the weights
PIXELS = 2  # the same without the gradient of the input
GENERATOR_TOKENS = 128 + 1  # learned tokens and the bias token beside the bands, as in `dofa.model.kernels`
GENERATOR_MLP = 2048  # hidden width of the generator's Transformer layer
PARTS = ("masked pass", "decoder", "second pass", "teacher", "kernels")


@dataclass(frozen=True)
class TeacherSize:
    """An ordinary RGB ViT, as far as its arithmetic goes."""

    width: int
    depth: int
    patch: int


@dataclass(frozen=True)
class Step:
    """The shapes of one micro-batch.

    Attributes:
        batch: images.
        bands: fed to the model; an average where micro-batches draw their bands.
        side: of the training image in pixels.
        pictures: that the teacher is shown of each image.
    """

    batch: int
    bands: float
    side: int
    pictures: int = 1


def linear(rows: float, inside: float, out: float) -> float:
    """FLOPs of rows × inside by inside × out: two for each multiply-and-add.

    Args:
        rows: vectors that are multiplied.
        inside: their width.
        out: width of the results.
    """
    return 2 * rows * inside * out


def block(tokens: float, width: int) -> float:
    """FLOPs of a Transformer block on one image, forward.

    24·T·D² for queries, keys, values (3·D²), projection (D²) and MLP (8·D²); 4·T²·D for scores and their mixture.

    Args:
        tokens: T, of an image.
        width: D.
    """
    return linear(tokens, width, 12 * width) + 2 * linear(tokens, tokens, width)


def kernels(bands: float, dim: int, out: int, bias: int = 0) -> float:
    """FLOPs of generating kernels for the bands of one micro-batch, forward.

    One Transformer layer over bands and learned tokens, then a linear map from each band to its `out` values and from
    the last token to the bias.

    Args:
        bands: C.
        dim: of the encoded wavelengths.
        out: values of one band's kernel.
        bias: length of the generated bias, 0 for none.
    """
    tokens = GENERATOR_TOKENS + bands
    layer = linear(tokens, dim, 4 * dim + 2 * GENERATOR_MLP) + 2 * linear(tokens, tokens, dim)
    return layer + linear(bands, dim, out) + linear(1, dim, bias)


def teacher_flops(teacher: TeacherSize, blocks: Sequence[int], patches: int) -> float:
    """FLOPs of one picture through a frozen teacher, as deep as its deepest block of those named.

    Args:
        teacher: its size.
        blocks: numbers asked for, negative from the end.
        patches: of a picture.
    """
    embed = linear(patches, 3 * teacher.patch**2, teacher.width)
    return embed + deepest(blocks, teacher.depth, "teacher") * block(patches + 1, teacher.width)


def step_flops(
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    mask: MaskConfig,
    distill: DistillConfig,
    teacher: TeacherSize | None,
    step: Step,
    recompute: bool = False,
) -> dict[str, float]:
    """FLOPs of one micro-batch, forward and backward.

    Args:
        encoder: the student.
        decoder: of masked image modelling.
        mask: the hidden share.
        distill: how the student is held to the teacher.
        teacher: None for no distillation.
        step: shapes of the micro-batch.
        recompute: whether blocks are computed again in the backward pass.

    Returns:
        By the names of `PARTS`. Projectors count with the teacher.
    """
    batch, bands, width, patch, dim = step.batch, step.bands, encoder.width, encoder.patch, encoder.wave_dim
    patches = (step.side // patch) ** 2
    seen = mask.visible(patches)
    deep = 0 if teacher is None else deepest(distill.blocks, encoder.depth, "student")
    reconstructs = distill.reconstruction > 0
    visible = teacher is not None and distill.view == "visible"

    def embedding(count: int, channels: float) -> float:
        return PIXELS * linear(count, channels * patch**2, width)

    def trained(tokens: int, wide: int) -> float:
        # Computing a block again ends before its last product, whose result nobody needs.
        again = block(tokens, wide) - linear(tokens, 4 * wide, wide) if recompute else 0.0
        return TRAINED * block(tokens, wide) + again

    def embedding_kernels(channels: float) -> float:
        corrected = 2 * linear(channels, dim, dim)
        return TRAINED * (corrected + kernels(channels, dim, patch**2 * width, width))

    parts = dict.fromkeys(PARTS, 0.0)
    if reconstructs or visible:
        body = (encoder.depth if reconstructs else deep) * trained(seen + 1, width)
        parts["masked pass"] = batch * (embedding(seen, bands) + body)
        parts["kernels"] += embedding_kernels(bands)
    if reconstructs:
        hidden, pixels = patches - seen, bands * patch**2
        ends = linear(seen + 1, width, decoder.width) + linear(hidden, decoder.width, pixels)
        parts["decoder"] = batch * (TRAINED * ends + decoder.depth * trained(patches + 1, decoder.width))
        parts["kernels"] += TRAINED * kernels(bands, dim, patch**2 * decoder.width)
    if teacher is not None:
        if not visible:
            channels = 3 if distill.view == "proxy" else bands
            parts["second pass"] = batch * (embedding(patches, channels) + deep * trained(patches + 1, width))
            parts["kernels"] += embedding_kernels(channels)
        if distill.projector:
            rows = 1 if distill.target == "pooled" else seen if visible else patches
            parts["teacher"] += batch * len(distill.blocks) * TRAINED * linear(rows, width, teacher.width)
        if not distill.crops:
            shown = teacher_flops(teacher, distill.teacher_blocks or distill.blocks, patches)
            parts["teacher"] += batch * step.pictures * shown
        if distill.anchor:
            parts["kernels"] += embedding_kernels(3)
    if encoder.embedding == "separate":
        parts["kernels"] = 0.0  # they are read from a table
    return parts


def deepest(blocks: Sequence[int], depth: int, whose: str) -> int:
    """How many blocks run for those named.

    Args:
        blocks: numbers, negative from the end.
        depth: blocks there are.
        whose: student or teacher, for the message.

    Raises:
        ConfigError: there is no such block.
    """
    if any(not -depth <= i < depth for i in blocks):
        raise ConfigError(f"distill compares blocks {list(blocks)}, but the {whose} has {depth} (0 to {depth - 1})")
    return 1 + max(i % depth for i in blocks)
