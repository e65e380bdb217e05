"""The published pretraining graph, composed plainly from torch's own parts on the weights of our modules.

Every patch is embedded by a convolution with the materialised kernel and the hidden ones are dropped afterwards; the
decoder's output is turned into pixels for every patch and the loss is masked; distillation takes a second, unmasked
pass of the student. Written from the facts of arXiv 2403.15356 and its published graph; it is what
`benchmarks/pretrain_step.py` measures against, and computes the same losses.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dofa.model.encoder import DOFA, Wavelengths
from dofa.model.mae import MaskedAutoencoder
from dofa.model.patch_embed import KERNEL_SCALE, WEIGHT_TOKENS, WeightGenerator
from dofa.model.vit import Block
from dofa.train.objective import Pretraining

Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # image, kernel (D, C, p, p), bias -> (B, D, h, w)


def plain_convolution(image: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(image, kernel, bias, stride=kernel.shape[-1])


def unfolded_convolution(image: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """The same by unfold and a matrix product, for processors whose bf16 convolution is wrong."""
    side, patch = image.shape[-1], kernel.shape[-1]
    tokens = F.linear(F.unfold(image, patch, stride=patch).transpose(1, 2), kernel.flatten(1), bias)
    return tokens.transpose(1, 2).unflatten(2, (side // patch, -1))


def generate(generator: WeightGenerator, waves: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights (C, out) and bias of the bands, scaled after they are generated."""
    tokens = generator.transformer_encoder(torch.cat([generator.weight_tokens, waves, generator.bias_token]))
    weight = generator.fc_weight(tokens[WEIGHT_TOKENS:-1] + waves) * KERNEL_SCALE
    return weight, None if generator.fc_bias is None else generator.fc_bias(tokens[-1]) * KERNEL_SCALE


def embed(encoder: DOFA, image: Tensor, bands: Wavelengths, convolution: Convolution) -> tuple[Tensor, Tensor]:
    """Tokens (B, 1 + N, D) of all patches, with CLS and positions, and the corrected encoding of the bands."""
    embedding, patch = encoder.patch_embed, encoder.config.patch
    waves = embedding.fclayer(encoder.encode_bands(bands))
    weight, bias = generate(embedding.weight_generator, waves)
    kernel = weight.reshape(len(waves), patch, patch, -1).permute(3, 0, 1, 2).contiguous()
    tokens = convolution(image, kernel, bias).flatten(2).transpose(1, 2) + encoder.pos_embed[:, 1:]
    cls = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(image), -1, -1)
    return torch.cat([cls, tokens], 1), waves


def run(block: Block, x: Tensor) -> Tensor:
    heads = block.attn.heads
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + block.ls1(block.attn.proj(mixed))
    return x + block.ls2(block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))))


def masked_modelling(
    mae: MaskedAutoencoder, image: Tensor, bands: Wavelengths, noise: Tensor, convolution: Convolution
) -> tuple[Tensor, Tensor]:
    """The masked loss, and the visible tokens (B, 1 + K, D) after the last block but one."""
    encoder, patch, (batch, channels, height, width) = mae.encoder, mae.patch, image.shape
    rows, columns = height // patch, width // patch
    tokens, waves = embed(encoder, image, bands, convolution)
    order = noise.argsort(1)
    restore, visible = order.argsort(1), mae.mask_config.visible(rows * columns)
    keep = order[:, :visible, None].expand(-1, -1, tokens.shape[2])
    x = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, keep)], 1)
    for block in encoder.blocks[:-1]:
        x = run(block, x)
    penultimate = x
    seen = mae.decoder_embed(encoder.norm(run(encoder.blocks[-1], x)))
    hidden = mae.mask_token.to(seen.dtype).expand(batch, rows * columns - visible, -1)
    shuffled = torch.cat([seen[:, 1:], hidden], 1)
    placed = shuffled.gather(1, restore[..., None].expand_as(shuffled))
    x = torch.cat([seen[:, :1], placed], 1) + mae.decoder_pos_embed
    for block in mae.decoder_blocks:
        x = run(block, x)
    weight, _ = generate(mae.decoder_pred.weight_generator, waves)
    pred = F.linear(mae.decoder_norm(x), weight.reshape(channels * patch**2, -1))[:, 1:]
    target = image.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    target = target.reshape(batch, rows * columns, -1)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    error = ((pred - (target - mean) / (variance + 1e-6) ** 0.5) ** 2).mean(-1)
    mask = (restore >= visible).float()
    return (error * mask).sum() / mask.sum(), penultimate


def paper_loss(objective: Pretraining, batch: dict[str, Any], convolution: Convolution) -> Tensor:
    """The paper's objective: masked modelling, and pooled tokens of a second, unmasked pass held to the teacher's."""
    mae, sensor = objective.mae, objective.sensors[batch["sensor"]]
    masked, _ = masked_modelling(mae, batch["image"], sensor, batch["noise"], convolution)
    x, _ = embed(mae.encoder, batch["proxy"], [sensor.bands[i] for i in batch["proxy_bands"]], convolution)
    for block in mae.encoder.blocks[:-1]:
        x = run(block, x)
    return masked + distance(objective, batch, x)


def visible_loss(objective: Pretraining, batch: dict[str, Any], convolution: Convolution) -> Tensor:
    """The cheaper objective by the dense graph, to check ours with: the tokens of the masked pass are distilled."""
    sensor = objective.sensors[batch["sensor"]]
    masked, tokens = masked_modelling(objective.mae, batch["image"], sensor, batch["noise"], convolution)
    return masked + distance(objective, batch, tokens)


def distance(objective: Pretraining, batch: dict[str, Any], tokens: Tensor) -> Tensor:
    """1 − cosine of the projected mean token and the teacher's; the teacher is one and the same for both sides."""
    grid = batch["image"].shape[-1] // objective.mae.patch
    theirs = objective.teach(batch["pictures"], grid)[:, 0, 0]
    mine = objective.distillation.projectors[0](tokens.mean(1))
    return 1 - F.cosine_similarity(mine.float(), theirs.float(), dim=-1).mean()
