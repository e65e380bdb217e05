"""What the weight generator makes of the wavelength axis: similarity of wavelengths, and the generated kernels.

    python examples/wavelengths.py --weights runs/tiny/model random:runs/tiny/model#0 --out runs/looks

Source: arXiv 2403.15356, section 3.2 and its analyses of the weight generator.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dofa.errors import ConfigError
from dofa.evaluation.backbones import open_backbone
from dofa.model.encoder import DOFA
from dofa.model.patch_embed import DynamicPatchEmbedding, encode_wavelengths

AXIS_UM = tuple(round(0.40 + 0.05 * step, 2) for step in range(43))  # 0.4 … 2.5 µm: optical bands lie in it
COLUMNS, CHANNELS = 15, 6  # of the picture of kernels


@dataclass(frozen=True)
class Spectra:
    """What one model makes of W wavelengths, each of them alone in an image.

    A kernel depends on which other bands there are, since the generator looks at all of them. Alone is the one company
    that is the same for every wavelength.

    Attributes:
        wavelength_um: (W,).
        encoding: (W, d) sines and cosines, the same in every model.
        embedding: (W, d) with the learned correction.
        kernel: (W, p, p, D); D is the width of the tokens.
    """

    wavelength_um: NDArray[np.float64]
    encoding: NDArray[np.float64]
    embedding: NDArray[np.float64]
    kernel: NDArray[np.float64]

    @property
    def norm(self) -> NDArray[np.float64]:
        """(W,) Euclidean length of each kernel."""
        return np.sqrt((self.kernel**2).sum((1, 2, 3)))


@torch.no_grad()
def spectra(model: torch.nn.Module | None, wavelength_um: Sequence[float] = AXIS_UM) -> Spectra:
    """Embeddings and generated kernels along the wavelength axis.

    Raises:
        ConfigError: a model whose patch embedding is not generated.
    """
    if not isinstance(model, DOFA) or not isinstance(model.patch_embed, DynamicPatchEmbedding):
        raise ConfigError("this model generates no kernels from wavelengths")
    embed = model.patch_embed
    numbers, _ = model.band_inputs(list(wavelength_um))
    embeddings, kernels = [], []
    for number in numbers.tolist():
        weight, _, corrected = embed.kernel(model.encode_bands([number]))
        embeddings.append(corrected[0].double().cpu().numpy())
        kernels.append(weight.reshape(embed.patch, embed.patch, embed.width).double().cpu().numpy())
    encoding = encode_wavelengths(numbers, model.config.wave_dim).double().cpu().numpy()
    return Spectra(np.array(numbers.tolist()), encoding, np.stack(embeddings), np.stack(kernels))


def cosines(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(W, W) cosine similarity of W vectors or tensors, read as one row each; 0 where one of them is zero."""
    flat = vectors.reshape(len(vectors), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def draw_similarity(models: Mapping[str, Spectra]) -> Figure:
    """Cosine of every pair of wavelengths: encoded, corrected by the model, and of the kernels; one row a model."""
    figure = Figure((8, 0.6 + 2.6 * len(models)), layout="constrained", dpi=144)
    figure.suptitle("Cosine similarity of wavelengths (µm)", weight="bold")
    grid = figure.subplots(len(models), 3, squeeze=False)
    for row, (name, found) in zip(grid, models.items(), strict=True):
        low, high = found.wavelength_um[[0, -1]]
        columns = {"encoding (no weights)": found.encoding, "encoding, corrected": found.embedding}
        columns |= {"generated kernel": found.kernel}
        for axes, (title, values) in zip(row, columns.items(), strict=True):
            shown = axes.imshow(
                cosines(values), cmap="RdBu_r", vmin=-1, vmax=1, origin="lower", extent=(low, high, low, high)
            )
            axes.set_title(title, size=9)
        row[0].set_ylabel(name)
        figure.colorbar(shown, ax=row.tolist())
    return figure


def draw_kernels(models: Mapping[str, Spectra]) -> Figure:
    """The channels of the kernels that change most along the axis: a block of rows a model, a column a wavelength.

    Each channel has one colour scale for all its wavelengths: what fades has less to say there.
    """
    counts = [min(CHANNELS, found.kernel.shape[-1]) for found in models.values()]
    figure = Figure((0.5 * COLUMNS, 0.6 + 0.5 * sum(counts)), layout="constrained", dpi=144)
    figure.suptitle("Generated kernels by wavelength (µm)", weight="bold")
    blocks = figure.subfigures(len(models), 1, height_ratios=counts, squeeze=False)[:, 0]
    for block, count, (name, found) in zip(blocks, counts, models.items(), strict=True):
        columns = np.linspace(0, len(found.wavelength_um) - 1, COLUMNS).round().astype(int)
        channels = found.kernel.var(0).mean((0, 1)).argsort()[::-1][:count]
        block.supylabel(name, size=9)
        for row, channel in zip(block.subplots(count, COLUMNS, squeeze=False), channels, strict=True):
            limit = max(float(np.abs(found.kernel[..., channel]).max()), 1e-12)
            for axes, at in zip(row, columns, strict=True):
                axes.imshow(found.kernel[at, ..., channel], cmap="RdBu_r", vmin=-limit, vmax=limit)
                axes.set_axis_off()
                if channel == channels[0]:
                    axes.set_title(f"{found.wavelength_um[at]:.2f}", size=7)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Write wavelengths.csv, kernels.csv and a picture of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", nargs="+", required=True, help="models, as dofa probe takes them")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    told = parser.parse_args(argv)
    models = {name: spectra(open_backbone(name).module) for name in dict.fromkeys(told.weights)}
    told.out.mkdir(parents=True, exist_ok=True)
    similarities, norms = [], []
    for name, found in models.items():
        axis = found.wavelength_um
        pairs = {"model": name, "wavelength_um": np.repeat(axis, len(axis)), "other_um": np.tile(axis, len(axis))}
        tables = {"encoding": found.encoding, "embedding": found.embedding, "kernel": found.kernel}
        similarities.append(pd.DataFrame(pairs | {key: cosines(values).ravel() for key, values in tables.items()}))
        norms.append(pd.DataFrame({"model": name, "wavelength_um": axis, "norm": found.norm}))
    pd.concat(similarities).to_csv(told.out / "wavelengths.csv", index=False, float_format="%.5f")
    pd.concat(norms).to_csv(told.out / "kernels.csv", index=False, float_format="%.6g")
    draw_similarity(models).savefig(told.out / "wavelengths.png")
    draw_kernels(models).savefig(told.out / "kernels.png")


if __name__ == "__main__":
    main()
