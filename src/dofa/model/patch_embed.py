"""Patch embeddings whose weights are generated from wavelengths, and their inverse for reconstruction.

A small Transformer looks at all bands of an image together and writes one kernel for each (arXiv 2403.15356, section
3.2). The kernels meet the image in one matrix product over the patches that are wanted, never in a convolution: only
then do hidden patches cost nothing, and bf16 `conv2d` is silently wrong on some processors (docs/architecture.md).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_SCALE = 0.01  # both generated weights and biases carry it; released weights were trained with it
WEIGHT_TOKENS = 128  # learned tokens beside the bands; they act as attention keys only
# Values that inference on a CPU cuts into patches at once: a buffer that is used again, and bands of it that stay in
# the processor's second-level cache between their two steps.
CELLS_AT_ONCE, BANDS_AT_ONCE = 2**22, 2**19


def encode_wavelengths(wavelength_um: Tensor, dim: int = 128) -> Tensor:
    """Sine and cosine features of wavelengths, the input of the weight generator.

    Args:
        wavelength_um: (C,) central wavelengths in micrometres.
        dim: width of the encoding, even.

    Returns:
        (C, dim) float32: sines in the first half, cosines in the second, of 1000·λ at dim/2 geometric frequencies.

    Source: arXiv 2403.15356, section 3.2; the order of the halves is what the released weights were trained with.
    """
    # float64 here would cost parity with the released weights: 3e-5 on 202 bands.
    step = torch.arange(dim // 2, dtype=torch.float32, device=wavelength_um.device) / (dim / 2)
    angle = (1000.0 * wavelength_um.float())[:, None] * (1.0 / 10000.0**step)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def pad_to_patch(image: Tensor, patch: int) -> Tensor:
    """The image (B, C, H, W) with its last row and column repeated until both sides are multiples of the patch.

    Args:
        patch: side in pixels.
    """
    height, width = image.shape[-2:]
    below, right = -height % patch, -width % patch
    return F.pad(image, (0, right, 0, below), mode="replicate") if below or right else image


def patchify(image: Tensor, patch: int, index: Tensor | None = None) -> Tensor:
    """Cuts an image into flat patches, row by row, or only those that are wanted.

    Args:
        image: (B, C, H, W), sides multiples of the patch.
        patch: side of a patch in pixels.
        index: (B, K) which patches of each image, or None for all.

    Returns:
        (B, K or N, C·p·p), values of a patch in (C, p, p) order.
    """
    if index is None:
        batch, bands, height, width = image.shape
        grid = image.reshape(batch, bands, height // patch, patch, width // patch, patch)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, bands * patch * patch)
    first, steps = patch_runs(image, patch, index)
    return take_runs(image, patch, first, steps)


def patch_runs(image: Tensor, patch: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Where patches lie in an image that is read as one long row of runs of p pixels.

    Args:
        image: (B, C, H, W), sides multiples of the patch.
        patch: side of a patch in pixels.
        index: (B, K) patches of each image.

    Returns:
        (B, K) number of each patch's first run, and (C·p,) what to add for its others.
    """
    batch, bands, height, width = image.shape
    columns = width // patch
    plane = height * columns
    start = torch.arange(batch, device=index.device)[:, None] * (bands * plane)
    band = torch.arange(bands, device=index.device)[:, None] * plane
    line = torch.arange(patch, device=index.device) * columns
    return start + index // columns * (patch * columns) + index % columns, (band + line).flatten()


def take_runs(image: Tensor, patch: int, first: Tensor, steps: Tensor) -> Tensor:
    """The patches (..., C·p·p) that begin at `first` (...), see `patch_runs`."""
    # Whole runs are copied, three times faster than pixels by a six-dimensional index.
    runs = image.reshape(-1, patch).index_select(0, (first[..., None] + steps).flatten())
    return runs.reshape(*first.shape, -1)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: (B, N, C·p·p) to (B, C, rows·p, columns·p).

    Args:
        patches: (B, N, C·p·p), N = rows · columns.
        patch: side p in pixels.
        grid: (rows, columns).
    """
    batch = patches.shape[0]
    cells = patches.reshape(batch, *grid, -1, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, -1, grid[0] * patch, grid[1] * patch)


class WaveMLP(nn.Module):
    """Adds a learned, non-negative correction to the encoded wavelengths: V' = V + ReLU(W2·ReLU(W1·V + b1) + b2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, dim)
        self.w2 = nn.Linear(dim, dim)
        for layer in (self.w1, self.w2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, waves: Tensor) -> Tensor:
        """(C, dim) to (C, dim)."""
        return waves + F.relu(self.w2(F.relu(self.w1(waves))))


class WeightGenerator(nn.Module):
    """The hypernetwork: one Transformer layer over all bands, then a linear map from each band to its kernel.

    Args:
        dim: of the encoded wavelengths.
        fan_in: how many of them are summed into one output, for the initial scale.
        bias_out: length of the generated bias, None for no bias.

    Source: arXiv 2403.15356, section 3.2; where the text differs (it reads kernels off the learned weight tokens) this
    is what the released weights do: the kernel of a band comes from the band's own position.
    """

    def __init__(self, dim: int, out: int, fan_in: int, bias_out: int | None) -> None:
        super().__init__()
        self.weight_tokens = nn.Parameter(torch.empty(WEIGHT_TOKENS, dim))
        self.bias_token = nn.Parameter(torch.empty(1, dim))
        layer = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=2048, dropout=0.0, activation="gelu")
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.fc_weight = nn.Linear(dim, out)
        self.fc_bias = None if bias_out is None else nn.Linear(dim, bias_out)
        nn.init.normal_(self.weight_tokens, std=0.02)
        nn.init.normal_(self.bias_token, std=0.02)
        # A band's state z has |z|² ≈ 3·dim (measured). With this deviation one band of unit variance contributes 0.1
        # to an output whatever the patch or the decoder's width ("hyperfan-in", Chang et al., ICLR 2020). Bands add up
        # almost coherently: tokens run from 0.2 (two bands) over 0.5 (nine) to 9 (202) beside positions of 0.7.
        nn.init.normal_(self.fc_weight.weight, std=0.1 / (KERNEL_SCALE * math.sqrt(3 * dim * fan_in)))
        nn.init.zeros_(self.fc_weight.bias)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor | None]:
        """Kernels for the bands of one image.

        Args:
            waves: (C, dim) encoded wavelengths V'.

        Returns:
            (C, out) weights, one row a band, computed in the parameters' precision and then rounded to that of
            autocast, and (bias_out,) or None in the parameters' own; both with their factor of 0.01.
        """
        with torch.autocast(waves.device.type, enabled=False):
            waves = waves.to(self.weight_tokens.dtype)
            # Without a batch axis PyTorch takes the same path in training and in inference.
            tokens = self.transformer_encoder(torch.cat([self.weight_tokens, waves, self.bias_token]))
            state = tokens[WEIGHT_TOKENS:-1] + waves
            bias = None if self.fc_bias is None else KERNEL_SCALE * self.fc_bias(tokens[-1])
            # The factor goes onto the small operands: a generated kernel has up to 40 million values.
            # Not in the autocast precision: a fitted map adds up large opposing terms, and bf16 products then lose up
            # to 40 % of a kernel, where rounding the finished kernel costs 0.17 % (docs/model.md, precision).
            kernel = F.linear(KERNEL_SCALE * state, self.fc_weight.weight, KERNEL_SCALE * self.fc_weight.bias)
        device = waves.device.type
        return kernel.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else kernel, bias


class DynamicPatchEmbedding(nn.Module):
    """Patches of any number of bands to tokens, through a kernel generated from the bands' wavelengths.

    Args:
        patch: side of a patch in pixels.
        offset: how many pixels up and left of its cell a patch starts; 1 in released weights, whose border patches see
            zeros there and whose visible tokens therefore carry pixels of masked neighbours.
        dim: of the encoded wavelengths.
    """

    def __init__(self, width: int, patch: int, offset: int = 0, dim: int = 128) -> None:
        super().__init__()
        self.width, self.patch, self.offset = width, patch, offset
        self.weight_generator = WeightGenerator(dim, patch * patch * width, patch * patch, width)
        self.fclayer = WaveMLP(dim)

    def kernel(self, waves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generated kernel in the parameters' own precision, whatever the autocast.

        Args:
            waves: (C, dim) encoded wavelengths V.

        Returns:
            weight (C·p·p, D), bias (D,), and the corrected encoding V' (C, dim) that the decoder is fed too.
        """
        with torch.autocast(waves.device.type, enabled=False):
            return self._generate(waves)

    def _generate(self, waves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `kernel`, with the finished weight rounded to the autocast precision."""
        with torch.autocast(waves.device.type, enabled=False):
            waves = self.fclayer(waves.to(self.fclayer.w1.weight.dtype))
        weight, bias = self.weight_generator(waves)
        return weight.reshape(-1, self.width), bias, waves

    def forward(self, image: Tensor, waves: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeds all patches, or only those that are kept.

        Args:
            image: (B, C, H, W) normalised, sides at least a patch.
            waves: (C, dim) encoded wavelengths V.
            keep: (B, K) patch indices, None for all.

        Returns:
            (B, K or N, D) tokens without positions, and V' (C, dim).
        """
        weight, bias, waves = self._generate(waves)
        return embed_patches(image, self.patch, self.offset, weight, bias, keep), waves


def embed_patches(
    image: Tensor, patch: int, offset: int, weight: Tensor, bias: Tensor, keep: Tensor | None = None
) -> Tensor:
    """The patch embedding as a matrix product, in the autocast precision.

    Args:
        image: (B, C, H, W), any size from one patch on.
        patch: side of a patch in pixels.
        offset: 0 or 1, see `DynamicPatchEmbedding`.
        weight: (C·p·p, D).
        bias: (D,).
        keep: (B, K) patch indices, None for all.

    Returns:
        (B, K or N, D).
    """
    if keep is None and infers_on_cpu(image):
        return embed_in_pieces(image, patch, offset, weight) + bias
    return patchify(shifted(image, patch, offset), patch, keep).to(weight.dtype) @ weight + bias


def embed_in_pieces(image: Tensor, patch: int, offset: int, weight: Tensor) -> Tensor:
    """The product of `embed_patches` for inference on a CPU, a few images at a time through one small buffer.

    Cutting all images of a hyperspectral batch at once takes as much memory again as they do, in float32 and in bf16,
    and with it most of the time (docs/inference.md).

    Args:
        image: (B, C, H, W).
        patch: side p in pixels.
        offset: how far cells begin before their patches, in pixels.
        weight: (C·p·p, D).

    Returns:
        (B, N, D), without bias.
    """
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    weight = weight.to(low)
    batch, bands, height, width = image.shape
    rows, columns = -(-height // patch), -(-width // patch)
    at_once = min(batch, max(1, CELLS_AT_ONCE // (rows * columns * len(weight))))
    step = max(1, BANDS_AT_ONCE // (at_once * height * width))
    cells = image.new_empty((at_once, rows, columns, bands, patch, patch), dtype=low)
    tokens = image.new_empty((batch, rows * columns, weight.shape[1]), dtype=low)
    for first in range(0, batch, at_once):
        part = image[first : first + at_once]
        into = cells[: len(part)]
        for band in range(0, bands, step):
            some = shifted(part[:, band : band + step].to(low), patch, offset)
            grid = some.reshape(*some.shape[:2], rows, patch, columns, patch)
            into[:, :, :, band : band + step] = grid.permute(0, 2, 4, 1, 3, 5)
        torch.mm(into.view(-1, len(weight)), weight, out=tokens[first : first + at_once].view(-1, weight.shape[1]))
    return tokens


def infers_on_cpu(x: Tensor) -> bool:
    """Whether a batch may be cut into pieces to spare memory: eager inference on a CPU."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def shifted(image: Tensor, patch: int, offset: int) -> Tensor:
    """The image padded to whole patches, and moved by `offset` pixels: zeros come in, its last row and column go.

    Args:
        image: (B, C, H, W).
        patch: side in pixels.
        offset: pixels.
    """
    image = pad_to_patch(image, patch)
    return F.pad(image, (offset, -offset, offset, -offset)) if offset else image


class DynamicPatchPrediction(nn.Module):
    """Tokens back to the pixels of any number of bands: the decoder's last layer, generated like the embedding.

    Args:
        patch: side of a patch in pixels.
        dim: of the encoded wavelengths.
    """

    def __init__(self, width: int, patch: int, dim: int = 128) -> None:
        super().__init__()
        self.width = width
        # No bias: the published decoder generates one and throws it away, a parameter no loss reaches.
        self.weight_generator = WeightGenerator(dim, patch * patch * width, width, None)

    def forward(self, tokens: Tensor, waves: Tensor) -> Tensor:
        """Predicted patches.

        Args:
            tokens: (B, M, width).
            waves: (C, dim), the encoder's V'.

        Returns:
            (B, M, C·p·p), values in (C, p, p) order: band c is written by the kernel of wavelength c.
        """
        weight, _ = self.weight_generator(waves)
        return F.linear(tokens, weight.reshape(-1, self.width))
