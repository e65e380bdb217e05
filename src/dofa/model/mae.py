"""Masked image modelling with any bands: the encoder sees a few patches, a dynamic decoder predicts the others.

Only visible patches are embedded and only masked ones predicted; the result equals the dense computation, the cost does
not. Sources: arXiv 2403.15356; He et al. 2022 for masking and per-patch targets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dofa.errors import DataError
from dofa.model.config import DecoderConfig, MaskConfig
from dofa.model.encoder import DOFA, Wavelengths, patch_grid
from dofa.model.patch_embed import DynamicPatchPrediction, pad_to_patch, patch_runs, patchify, take_runs, unpatchify
from dofa.model.separate import SeparatePatchEmbedding, SeparatePatchPrediction
from dofa.model.vit import NORM_EPS, Block, Grid, init_linear, interpolate_positions, run_block, sincos_positions

VARIANCE_FLOOR = 1e-6  # added under the root of a patch's variance
VALUES_AT_ONCE = 2**22  # of the loss: in float32 16 MB, which a processor's cache and its allocator hold on to


class MaskedAutoencoder(nn.Module):
    """A DOFA encoder with the decoder that pretrains it.

    The encoder's `fc_norm` and `head`, which no reconstruction reaches, are frozen: an optimiser or DDP finds no
    parameter here that stays without a gradient. An encoder taken out for fine-tuning needs `requires_grad_(True)`.

    Args:
        decoder: width and depth of the decoder.
        mask: share of hidden patches.
        legacy_layout: the decoder was trained by the published code, whose output vector of a patch means (p, p, C);
            its predictions are un-permuted to (C, p, p). False for every new model.
    """

    def __init__(
        self,
        encoder: DOFA,
        decoder: DecoderConfig = DecoderConfig(),  # noqa: B008 (frozen)
        mask: MaskConfig = MaskConfig(),  # noqa: B008 (frozen)
        legacy_layout: bool = False,
    ) -> None:
        super().__init__()
        config = encoder.config
        self.encoder, self.decoder_config, self.mask_config = encoder, decoder, mask
        self.legacy_layout = legacy_layout
        self.patch = config.patch
        self.decoder_embed = nn.Linear(config.width, decoder.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder.width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(decoder.width, encoder.grid), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(Block(decoder.width, decoder.heads) for _ in range(decoder.depth))
        self.decoder_norm = nn.LayerNorm(decoder.width, eps=NORM_EPS)
        self.decoder_pred: DynamicPatchPrediction | SeparatePatchPrediction
        if isinstance(encoder.patch_embed, SeparatePatchEmbedding):
            self.decoder_pred = SeparatePatchPrediction(decoder.width, encoder.patch_embed)
        else:
            self.decoder_pred = DynamicPatchPrediction(decoder.width, config.patch, config.wave_dim)
        init_linear(self.decoder_embed)
        nn.init.normal_(self.mask_token, std=0.02)
        encoder.fc_norm.requires_grad_(False)
        encoder.head.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, beside biases and norms."""
        generator = "decoder_pred.weight_generator"
        own = {"mask_token", "decoder_pos_embed", f"{generator}.weight_tokens", f"{generator}.bias_token"}
        return own | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the encoder's and decoder's activations in the backward pass."""
        self.encoder.set_grad_checkpointing(enable)

    def forward(
        self,
        image: Tensor,
        wavelengths: Wavelengths,
        noise: Tensor | None = None,
        valid: Tensor | None = None,
        blocks: Sequence[int] = (),
    ) -> dict[str, Any]:
        """One step of masked image modelling.

        Args:
            image: (B, C, H, W) normalised, any size of at least two patches.
            wavelengths: of the C bands, see `DOFA.band_inputs`.
            noise: (B, N), the patches with the smallest values stay visible; drawn if None.
            valid: (B, H, W) bool, False where there is no measurement: such pixels are fed as 0 and count in no target
                statistic and no loss. Neither do pixels added to fill the last patches.
            blocks: of the encoder whose outputs are wanted too.

        Returns:
            loss: scalar, mean over the masked patches that hold a valid pixel.
            patch_loss: (B, M) mean squared error of each, over its valid values; 0 where it has none; no gradient.
            image_loss: (B,) mean over an image's masked patches; NaN where none is valid; no gradient.
            pred: (B, M, C·p·p) normalised predictions, (C, p, p) order.
            masked: (B, M) their patch indices. mask: (B, N) float, 1 = masked.
            latent: (B, 1 + K, D) CLS and visible tokens after `norm`. keep: (B, K) indices of the visible patches.
            levels: raw outputs (B, 1 + K, D) of `blocks`, a list.

        Raises:
            DataError: the image or the noise has another shape than expected, or values are not finite.
        """
        if valid is not None:
            if image.ndim != 4 or valid.shape != (image.shape[0], *image.shape[2:]):
                raise DataError(f"valid has shape {tuple(valid.shape)} for an image of shape {tuple(image.shape)}")
            image = torch.where(valid[:, None], image, 0.0)
        grid = patch_grid(image, self.patch)
        patches = grid[0] * grid[1]
        if patches < 2:
            raise DataError(f"image of one patch of {self.patch} pixels: nothing would be left after masking")
        if noise is None:
            noise = torch.rand(len(image), patches, device=image.device)
        elif noise.shape != (len(image), patches):
            raise DataError(f"noise has shape {tuple(noise.shape)}; one number a patch is ({len(image)}, {patches})")
        keep, masked, mask = split_patches(noise, self.mask_config.ratio)
        tokens, waves, levels = self.encoder.forward_visible(image, wavelengths, keep, blocks)
        latent = self.encoder.norm(tokens)
        pred = self.decode(latent, waves, keep, masked, grid)
        loss, patch_loss, counted = masked_error(pred, image, self.patch, masked, valid)
        return {
            "loss": loss,
            "patch_loss": patch_loss,
            "image_loss": patch_loss.sum(1) / counted.sum(1),
            "pred": pred,
            "masked": masked,
            "mask": mask,
            "latent": latent,
            "keep": keep,
            "levels": levels,
        }

    def decode(self, latent: Tensor, waves: Tensor, keep: Tensor, masked: Tensor, grid: Grid) -> Tensor:
        """Predicts the masked patches.

        Args:
            latent: (B, 1 + K, D) CLS and visible tokens after `norm`.
            waves: (C, wave_dim), the encoder's V'.
            keep: (B, K) patch indices of the visible tokens.
            masked: (B, M) patch indices to predict.
            grid: rows and columns of patches.

        Returns:
            (B, M, C·p·p) normalised predictions, (C, p, p) order.
        """
        seen = self.decoder_embed(latent)
        hidden = self.mask_token.to(seen.dtype).expand(*masked.shape, -1)
        # Attention knows no order but the positions': visible tokens stay in front, masked ones at the end.
        table = interpolate_positions(self.decoder_pos_embed, self.encoder.grid, grid)
        places = table[0, 1:][torch.cat([keep, masked], dim=1)]
        x = torch.cat([seen, hidden], dim=1) + torch.cat([table[:, :1].expand(len(places), -1, -1), places], dim=1)
        for block in self.decoder_blocks:
            x = run_block(block, x, self.encoder.grad_checkpointing)
        pred: Tensor = self.decoder_pred(self.decoder_norm(x[:, -masked.shape[1] :]), waves)
        if self.legacy_layout:
            pred = pred.reshape(*pred.shape[:2], self.patch**2, -1).transpose(2, 3).flatten(2)
        return pred

    @torch.no_grad()
    def reconstruct(
        self, image: Tensor, wavelengths: Wavelengths, noise: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """The image with its masked patches as predicted, for people to look at.

        Predictions are brought back with the hidden patch's own mean and standard deviation, which the model does not
        predict; visible patches are as given.

        Args:
            image: (B, C, H, W) normalised.
            noise: (B, N) as in `forward`.
            valid: (B, H, W) bool as in `forward`.

        Returns:
            (B, C, H, W) float32, normalised like the image.
        """
        out = self(image, wavelengths, noise, valid)
        if valid is not None:
            image = torch.where(valid[:, None], image, 0.0)
        target = patch_targets(image, self.patch, out["masked"], valid)
        predicted = out["pred"].float().reshape(target.normalised.shape) * target.std + target.mean
        padded = pad_to_patch(image.float(), self.patch)
        grid = (padded.shape[2] // self.patch, padded.shape[3] // self.patch)
        patches = patchify(padded, self.patch)
        patches.scatter_(1, out["masked"][..., None].expand(-1, -1, patches.shape[2]), predicted.flatten(2))
        return unpatchify(patches, self.patch, grid)[..., : image.shape[2], : image.shape[3]]


def split_patches(noise: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which patches are seen and which are hidden, drawn for each image on its own.

    Args:
        noise: (B, N); the smallest values stay visible.
        ratio: hidden share.

    Returns:
        (B, K) visible and (B, M) masked patch indices, in the order of the noise, and (B, N) float, 1 = masked.
    """
    order = noise.argsort(dim=1, stable=True)
    visible = MaskConfig(ratio).visible(noise.shape[1])
    keep, masked = order[:, :visible], order[:, visible:]
    return keep, masked, torch.zeros_like(noise, dtype=torch.float32).scatter(1, masked, 1.0)


class PatchTargets(NamedTuple):
    """Pixels of some patches, normalised by their own mean and standard deviation.

    `normalised` is (B, M, C, p·p) float32, `mean` and `std` (B, M, 1, 1); `weight` is (B, M, 1, p·p), 1 where a pixel
    counts, or None where all do.
    """

    normalised: Tensor
    mean: Tensor
    std: Tensor
    weight: Tensor | None


@torch.no_grad()
def patch_targets(image: Tensor, patch: int, index: Tensor, valid: Tensor | None = None) -> PatchTargets:
    """What the decoder is to predict: the pixels of the chosen patches, normalised patch by patch in float32.

    Mean and unbiased variance run over all bands and pixels of a patch together, with 1e-6 added under the root. The
    patches lie on the plain grid whatever the embedding's offset.

    Args:
        image: (B, C, H, W).
        patch: side in pixels.
        index: (B, M) patch indices.
        valid: (B, H, W) bool, None if every pixel counts; pixels that fill the last patches never count.
    """
    image, counts = pixels_and_counts(image, patch, valid)
    pixels = patchify(image, patch, index).reshape(*index.shape, image.shape[1], -1)
    weight = None if counts is None else patchify(counts, patch, index).reshape(*index.shape, 1, -1)
    return PatchTargets(*normalise_(pixels, weight), weight)


def pixels_and_counts(image: Tensor, patch: int, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The image in float32 and whole patches, and (B, 1, H, W), 1 where a pixel counts, or None where all do.

    Args:
        image: (B, C, H, W).
        patch: side in pixels.
        valid: (B, H, W) bool, None where every pixel counts.
    """
    height, width = image.shape[-2:]
    if valid is None and height % patch == 0 and width % patch == 0:
        return image.float(), None
    counts = torch.ones_like(image[:, :1], dtype=torch.float32) if valid is None else valid[:, None].float()
    return pad_to_patch(image.float(), patch), F.pad(counts, (0, -width % patch, 0, -height % patch))


def normalise_(pixels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (..., C, p·p) normalised in place, 0 where nothing counts; their mean and deviation (..., 1, 1).

    Args:
        pixels: changed in place.
        weight: (..., 1, p·p), 1 where a pixel counts, or None where all do.
    """
    if weight is None:
        mean = pixels.mean((-2, -1), keepdim=True)
        freedom: Tensor | int = pixels.shape[-2] * pixels.shape[-1] - 1
        pixels.sub_(mean)
    else:
        total = pixels.shape[-2] * weight.sum((-2, -1), keepdim=True)
        mean = (pixels * weight).sum((-2, -1), keepdim=True) / total.clamp(min=1)
        freedom = (total - 1).clamp(min=1)
        pixels.sub_(mean).mul_(weight)
    square = torch.linalg.vector_norm(pixels, dim=(-2, -1), keepdim=True).square()
    std = (square / freedom + VARIANCE_FLOOR).sqrt()
    return pixels.div_(std), mean, std


def masked_error(
    pred: Tensor, image: Tensor, patch: int, index: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """How far predictions are from the normalised pixels of their patches.

    Args:
        pred: (B, M, C·p·p), normalised, (C, p, p) order.
        image: (B, C, H, W); it gets no gradient.
        patch: side in pixels.
        index: (B, M) patch indices.
        valid: (B, H, W) bool, None if every pixel counts.

    Returns:
        The mean over the patches where anything counts, a scalar; and, without gradient, the (B, M) mean squared error
        of each over what counts, 0 where nothing does, and (B, M) 1 where anything does.
    """
    image, counts = pixels_and_counts(image.detach(), patch, valid)
    weight = None if counts is None else patchify(counts, patch, index)
    total, error = cast(tuple[Tensor, Tensor], _MaskedError.apply(pred, image, patch, index, weight))  # type: ignore[no-untyped-call]
    counted = torch.ones_like(error) if weight is None else weight.amax(-1)
    return total / counted.sum().clamp(min=1), error, counted


class _MaskedError(torch.autograd.Function):
    """Sum and parts of `masked_error`, a few patches at a time.

    With 202 bands the targets of all patches in float32, and what autograd keeps between them and the error, took most
    of the loss' time and several times its memory. Only the difference stays, in the precision of the predictions.
    """

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, image: Tensor, patch: int, index: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        bands, area = image.shape[1], patch * patch
        flat = pred.reshape(-1, bands, area)
        kept = torch.empty_like(flat)
        error = torch.empty(len(flat), device=pred.device)
        first, steps = patch_runs(image, patch, index)
        some = len(flat) if torch.compiler.is_compiling() else max(1, VALUES_AT_ONCE // (bands * area))
        for i in range(0, len(flat), some):
            part = slice(i, i + some)
            pixels = take_runs(image, patch, first.flatten()[part], steps).reshape(flat[part].shape)
            seen = None if weight is None else weight.reshape(-1, 1, area)[part]
            difference = normalise_(pixels, seen)[0].sub_(flat[part])
            if seen is not None:
                difference.mul_(seen)
            error[part] = torch.linalg.vector_norm(difference, dim=(1, 2)).square() / (bands * area)
            if seen is not None:
                share = seen.mean((1, 2)).clamp(min=1 / area)
                error[part] /= share
                difference.div_(share[:, None, None])
            kept[part] = difference
        ctx.save_for_backward(kept)
        ctx.shape = index.shape
        error = error.reshape(index.shape)
        ctx.mark_non_differentiable(error)
        return error.sum(), error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        # A factor without dimensions: the product stays in the precision of `kept`, without a copy in float32.
        towards = kept * (total * (-2 / kept[0].numel()))
        return towards.reshape(*ctx.shape, -1), None, None, None, None


@torch.no_grad()
def visible_mean_floor(
    image: Tensor, noise: Tensor, patch: int, ratio: float = 0.75, valid: Tensor | None = None
) -> Tensor:
    """The error a model has to beat: predicting the mean spectrum of the visible normalised patches everywhere.

    Args:
        image: (B, C, H, W) normalised, as the model is fed.
        noise: (B, N), the one the model is judged with.
        patch: side in pixels.
        ratio: hidden share.
        valid: (B, H, W) bool, None if every pixel counts.

    Returns:
        (B,) squared error per image, mean over its masked patches, to compare with `image_loss`; NaN where no masked
        patch holds a valid pixel.
    """
    if valid is not None:
        image = torch.where(valid[:, None], image, 0.0)
    keep, masked, _ = split_patches(noise, ratio)
    seen = patch_targets(image, patch, keep, valid)
    if seen.weight is None:
        spectrum = seen.normalised.mean((1, 3))
    else:
        spectrum = seen.normalised.sum((1, 3)) / seen.weight.sum((1, 3)).clamp(min=1)
    spectrum = spectrum[:, None, :, None].expand(-1, masked.shape[1], -1, patch**2).flatten(2)
    _, error, counted = masked_error(spectrum, image, patch, masked, valid)
    return error.sum(1) / counted.sum(1)
