"""What a model makes of a wavelength: its encoding, the correction to it, and the kernel generated from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dofa.errors import ConfigError
from dofa.model.encoder import DOFA
from dofa.model.patch_embed import DynamicPatchEmbedding, encode_wavelengths

Floats = NDArray[np.float64]
AXIS_UM = tuple(round(0.40 + 0.05 * step, 2) for step in range(43))  # 0.4 … 2.5 µm: optical bands lie in it


@dataclass(frozen=True)
class Spectra:
    """What one model makes of W wavelengths, each of them alone in an image.

    A kernel depends on which other bands there are, since the generator looks at all of them; alone is the one company
    that is the same for every wavelength.

    Attributes:
        wavelength_um: (W,).
        encoding: (W, d) sines and cosines, the same in every model.
        embedding: (W, d) with the learned correction V'.
        kernel: (W, p, p, D) what meets the pixels; D is the width of the tokens.
    """

    wavelength_um: Floats
    encoding: Floats
    embedding: Floats
    kernel: Floats

    @property
    def norm(self) -> Floats:
        """(W,) Euclidean length of each kernel."""
        return np.asarray(np.sqrt((self.kernel**2).sum((1, 2, 3))))


@torch.no_grad()
def spectra(model: DOFA, wavelength_um: Sequence[float] = AXIS_UM) -> Spectra:
    """Embeddings and generated kernels along the wavelength axis.

    Args:
        wavelength_um: micrometres; 0.4–2.5 in steps of 0.05 where absent.

    Raises:
        ConfigError: a model whose patch embedding is not generated, or a wavelength outside 0.2–20 µm.

    Source: arXiv 2403.15356, section 3.2 and its analyses of the weight generator.
    """
    embed = model.patch_embed
    if not isinstance(embed, DynamicPatchEmbedding):
        raise ConfigError("this model has one patch embedding a sensor: nothing is generated from wavelengths")
    numbers, _ = model.band_inputs(list(wavelength_um))
    embeddings, kernels = [], []
    for number in numbers.tolist():
        weight, _, corrected = embed.kernel(model.encode_bands([number]))
        embeddings.append(corrected[0].double().cpu().numpy())
        kernels.append(weight.reshape(embed.patch, embed.patch, embed.width).double().cpu().numpy())
    encoding = encode_wavelengths(numbers, model.config.wave_dim).double().cpu().numpy()
    return Spectra(np.array(numbers.tolist()), encoding, np.stack(embeddings), np.stack(kernels))


def cosines(vectors: Floats) -> Floats:
    """(W, W) cosine similarity of W vectors or tensors, read as one row each; 0 where one of them is zero."""
    flat = vectors.reshape(len(vectors), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)
