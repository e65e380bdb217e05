"""One step of masked image modelling: visible-only embedding and masked-only prediction against the dense graph.

Both sides share one model, image and mask and alternate within one run; their losses must agree before anything is
timed. The reference embeds every patch by a strided convolution with the generated kernel, drops the hidden ones, then
predicts every patch and masks the loss, as the published graph does.

    python benchmarks/sparse_mim.py --repeats 5 --json out.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dofa.model.config import DecoderConfig, preset
from dofa.model.encoder import DOFA
from dofa.model.mae import MaskedAutoencoder

S2_UM = [0.665, 0.56, 0.49, 0.705, 0.74, 0.783, 0.842, 1.61, 2.19]
ENMAP_UM = torch.linspace(0.418, 2.445, 202).tolist()  # the spacing of the bands changes no cost
# name, preset, decoder, wavelengths, side in pixels, batch
CASES = [
    ("tiny, s2 nine bands, 96 px, b16", "tiny", DecoderConfig(128, 2, 4), S2_UM, 96, 16),
    ("tiny, enmap 202, 96 px, b8", "tiny", DecoderConfig(128, 2, 4), ENMAP_UM, 96, 8),
    ("small, s2 nine bands, 224 px, b8", "small", DecoderConfig(512, 8, 16), S2_UM, 224, 8),
    ("small, enmap 202, 128 px, b8", "small", DecoderConfig(512, 8, 16), ENMAP_UM, 128, 8),
]


def dense_loss(mae: MaskedAutoencoder, image: Tensor, wavelengths: list[float], noise: Tensor) -> Tensor:
    encoder, patch, (batch, bands, height, width) = mae.encoder, mae.patch, image.shape
    rows, columns = height // patch, width // patch
    weight, bias, waves = encoder.patch_embed.kernel(encoder.encode_bands(wavelengths))
    kernel = weight.reshape(bands, patch, patch, -1).permute(3, 0, 1, 2)
    tokens = F.conv2d(image, kernel, bias, stride=patch).flatten(2).transpose(1, 2)
    order = noise.argsort(1)
    restore, visible = order.argsort(1), mae.mask_config.visible(rows * columns)
    tokens = encoder.add_positions(tokens, (rows, columns))
    keep = order[:, :visible, None].expand(-1, -1, tokens.shape[2])
    latent = encoder.norm(encoder.run_blocks(torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, keep)], 1)))
    seen = mae.decoder_embed(latent)
    filled = torch.cat([seen[:, 1:], mae.mask_token.to(seen.dtype).expand(batch, rows * columns - visible, -1)], 1)
    x = torch.cat([seen[:, :1], filled.gather(1, restore[..., None].expand_as(filled))], 1)
    table = mae.decoder_pos_embed
    if table.shape[1] != x.shape[1]:
        raise ValueError("build the model with the image size it is timed at")
    x = x + table
    for block in mae.decoder_blocks:
        x = block(x)
    pred = mae.decoder_pred(mae.decoder_norm(x), waves)[:, 1:].float()
    target = image.reshape(batch, bands, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    target = target.flatten(2)
    variance, mean = torch.var_mean(target, dim=2, keepdim=True)
    error = ((pred - (target - mean) / (variance + 1e-6).sqrt()) ** 2).mean(2)
    mask = (restore >= visible).float()
    return (error * mask).sum() / mask.sum()


def sparse_loss(mae: MaskedAutoencoder, image: Tensor, wavelengths: list[float], noise: Tensor) -> Tensor:
    return mae(image, wavelengths, noise)["loss"]


def step_seconds(loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer, dtype: torch.dtype) -> float:
    start = time.perf_counter()
    optimiser.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = loss()
    value.backward()
    optimiser.step()
    return time.perf_counter() - start


def measure(case: tuple, repeats: int, dtype: torch.dtype) -> dict[str, object]:
    name, size, decoder, wavelengths, side, batch = case
    torch.manual_seed(0)
    mae = MaskedAutoencoder(DOFA(preset(size, image_size=side)), decoder)
    image = torch.randn(batch, len(wavelengths), side, side)
    noise = torch.rand(batch, (side // mae.patch) ** 2)
    sides = {f: (lambda f=f: f(mae, image, wavelengths, noise)) for f in (dense_loss, sparse_loss)}
    with torch.no_grad():
        reference, ours = (float(sides[f]()) for f in (dense_loss, sparse_loss))
    if abs(ours - reference) > 1e-5 * abs(reference):
        raise SystemExit(f"{name}: the two sides disagree, {reference} and {ours}: nothing to compare")
    # Steps of size 0 keep the weights equal for both sides and cost what a step costs.
    optimiser = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=0.0)
    times: dict[Callable, list[float]] = {f: [] for f in sides}
    for repeat in range(repeats + 1):
        for f, loss in sides.items():
            seconds = step_seconds(loss, optimiser, dtype)
            if repeat:  # the first pair warms up
                times[f].append(seconds)
    ratios = [d / s for d, s in zip(times[dense_loss], times[sparse_loss], strict=True)]
    return {
        "name": name,
        "reference": statistics.median(times[dense_loss]),
        "ours": statistics.median(times[sparse_loss]),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "unit": "s/step",
    }


def machine(dtype: torch.dtype) -> str:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), cpu)
    a = torch.randn(1024, 1024).to(dtype)
    best = min(_seconds(lambda: a @ a) for _ in range(10))
    kind = str(dtype).removeprefix("torch.")
    return (
        f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, {kind} {2 * 1.024**3 / best:.0f} GFLOP/s"
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="one repeat of the tiny model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    head = machine(dtype)
    print(f"{head}; both losses agree to 1e-5 in float32")
    print(f"{'':36}{'dense':>10}{'ours':>10}   ratio (median of pairs, min–max)")
    rows = []
    for case in CASES[:2] if args.quick else CASES:
        row = measure(case, 1 if args.quick else args.repeats, dtype)
        rows.append(row)
        print(
            f"{row['name']:36}{row['reference']:8.3f} s{row['ours']:8.3f} s"
            f"   {row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
        )
    if args.json:
        args.json.write_text(json.dumps({"machine": head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
