"""Draws docs/images/model.png: what flows through the model (docs/model.md).

python tools/draw_model.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

TEXT, LINE = "#1b1b1b", "#555555"
COLOURS = {"input": "#e8e8e8", "wave": "#fde3c8", "image": "#d3e5f5", "out": "#dcefd9"}
# name: (x, y, width, height, colour, text); the unit is an inch of the figure.
BOXES = {
    "lambda": (0.2, 4.2, 1.7, 0.8, "input", "wavelengths λ\n(C,) in µm"),
    "encode": (2.3, 4.2, 1.9, 0.8, "wave", "sines, cosines of nm\nV (C, 128)"),
    "mlp": (4.6, 4.2, 1.9, 0.8, "wave", "V′ = V + MLP(V)\n(C, 128)"),
    "generator": (6.9, 4.2, 2.3, 0.8, "wave", "Transformer layer over\n128 tokens, V′, bias token"),
    "kernel": (9.6, 4.2, 2.0, 0.8, "wave", "kernels (C, p, p, D)\nbias (D,)"),
    "image": (0.2, 2.6, 1.7, 0.8, "input", "normalised image\n(B, C, H, W)"),
    "patches": (2.3, 2.6, 1.9, 0.8, "image", "visible patches\n(B, K, C·p·p)"),
    "embed": (4.6, 2.6, 1.9, 0.8, "image", "patches × kernels\n(B, K, D)"),
    "vit": (6.9, 2.6, 2.3, 0.8, "image", "CLS, positions,\nViT blocks (1 + K, D)"),
    "features": (9.6, 2.6, 2.0, 0.8, "out", "pooled (B, D)\nmaps (B, D, h, w)"),
    "decoder": (6.9, 1.0, 2.3, 0.8, "image", "decoder blocks\nmask tokens (M, 512)"),
    "second": (4.6, 1.0, 1.9, 0.8, "wave", "second generator\n(C·p·p, 512)"),
    "pixels": (9.6, 1.0, 2.0, 0.8, "out", "masked pixels\n(B, M, C·p·p)"),
}
# From the right or lower side of one box to the left, upper or right side of another.
ARROWS = [
    ("lambda", "encode"), ("encode", "mlp"), ("mlp", "generator"), ("generator", "kernel"), ("image", "patches"),
    ("patches", "embed"), ("embed", "vit"), ("vit", "features"), ("vit", "decoder"), ("decoder", "pixels"),
]  # fmt: skip


def main() -> None:
    """Write the picture."""
    figure = Figure(figsize=(11.8, 5.5), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11.8), ylim=(0.4, 5.9))
    axes.axis("off")
    for x, y, width, height, colour, text in BOXES.values():
        shape = FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", facecolor=COLOURS[colour], edgecolor=LINE
        )
        axes.add_patch(shape)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9.5, color=TEXT)
    style = {"arrowstyle": "-|>", "color": LINE, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    for start, end in ARROWS:
        x, y, width, height = BOXES[start][:4]
        to_x, to_y, to_width, to_height = BOXES[end][:4]
        if to_y == y:
            axes.annotate("", (to_x, to_y + to_height / 2), (x + width, y + height / 2), arrowprops=style)
        else:
            axes.annotate("", (to_x + to_width / 2, to_y + to_height), (x + width / 2, y), arrowprops=style)
    # The kernels come back over the image's row; V′ runs down to the decoder's generator; its kernels meet the tokens.
    axes.plot([10.6, 10.6, 5.9], [4.2, 3.8, 3.8], color=LINE, lw=1.3)
    axes.annotate("", (5.9, 3.4), (5.9, 3.81), arrowprops=style)
    axes.plot([5.0, 5.0, 4.4, 4.4], [4.2, 3.95, 3.95, 1.4], color=LINE, lw=1.3)
    axes.annotate("", (4.6, 1.4), (4.39, 1.4), arrowprops=style)
    axes.plot([5.55, 5.55, 9.4, 9.4], [1.0, 0.7, 0.7, 1.25], color=LINE, lw=1.3)
    axes.annotate("", (9.6, 1.25), (9.39, 1.25), arrowprops=style)
    axes.text(0.2, 5.45, "from wavelengths to kernels", fontsize=10.5, weight="bold", color=TEXT)
    axes.text(0.2, 3.55, "from an image to features", fontsize=10.5, weight="bold", color=TEXT)
    axes.text(
        0.2, 1.35, "masked image modelling\n(pretraining only)", fontsize=10.5, weight="bold", color=TEXT, va="center"
    )
    figure.savefig(Path(__file__).resolve().parents[1] / "docs" / "images" / "model.png")


if __name__ == "__main__":
    main()
