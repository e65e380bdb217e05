"""One optimisation step of pretraining: ours against a plain composition of the published graph.

    python benchmarks/pretrain_step.py --json step.json            # eager, every row
    python benchmarks/pretrain_step.py --sensors s2 --compiled     # compiled against compiled
    python benchmarks/pretrain_step.py --sensors s2 enmap --ablate # each measure switched off in turn

Rows are `<objective>-<sensor>`: `paper` distils from a second, unmasked pass on three bands, `visible` from the visible
tokens of the masked pass; both are measured against the plain composition of the paper's objective
(`published_step.py`: every patch embedded by a convolution, dense prediction, two student passes, PyTorch's own
attention, AdamW as torch makes it). Same weights, masks, batch, teacher and patch_offset; bf16 autocast, bf16 teacher,
ViT-B/16 and, with `plus-`, DOFA+ S/14 at 224 pixels, decoder 512 × 8, batch 16 (8 for EnMAP), the sides alternating in
one process. In float32 the losses are compared first, on two images: they must agree to 1e-4.

Memory is what tensors take at the peak of a step beyond weights, gradients and moments, by PyTorch's own record of
allocations on a CPU and its counter on a GPU.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import published_step as published
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dofa import sensors
from dofa.model import encoder as encoder_module
from dofa.model import mae as mae_module
from dofa.model import vit
from dofa.model.config import DecoderConfig, DistillConfig, preset
from dofa.model.encoder import DOFA, StaticViT
from dofa.model.mae import MaskedAutoencoder
from dofa.model.teacher import Teacher, VitFile
from dofa.train import objective as objective_module
from dofa.train.config import OptimConfig
from dofa.train.objective import Pretraining
from dofa.train.optim import adamw

SENSORS = {"s1": "sentinel-1-grd", "s2": "sentinel-2-dofa9", "rgb": "naip-rgb", "enmap": "enmap-202"}
PROXIES = {"s1": (0, 1, 0), "s2": None, "rgb": None, "enmap": None}  # None: the sensor's first rendering
SIDE = 224
Step = Callable[[], Tensor]


def build(plus: bool, sensor: str) -> tuple[dict[str, Pretraining], dict[str, Any]]:
    """The two objectives on one model, and a batch."""
    torch.manual_seed(0)
    config = preset("plus-small" if plus else "base")
    mae = MaskedAutoencoder(DOFA(config), DecoderConfig())
    vit_of_teacher = StaticViT(config, 3)
    for module in vit_of_teacher.modules():
        if isinstance(module, vit.LayerScale):
            module.gamma.data.fill_(1.0)
    half = (0.5,) * 3
    teacher = Teacher(VitFile(vit_of_teacher.state_dict(), config, "random", "", half, half)).to(torch.bfloat16)
    known = sensors.get(SENSORS[sensor])
    objectives = {
        name: Pretraining(mae, {known.name: known}, DistillConfig(view=view), teacher, config.width).train()
        for name, view in (("paper", "proxy"), ("visible", "visible"))
    }
    # One projector, so that the plain composition shares every weight.
    objectives["visible"].distillation = objectives["paper"].distillation
    size = 8 if sensor == "enmap" else 16
    image = torch.randn(size, len(known.bands), SIDE, SIDE)
    three = PROXIES[sensor] or tuple(known.index(next(iter(known.renderings.values()))))
    proxy = image[:, list(three)].clone()
    if len(set(three)) < 3:
        proxy[:, 2] = 0
    return objectives, {
        "image": image,
        "noise": torch.rand(size, (SIDE // config.patch) ** 2),
        "valid": None,
        "sensor": known.name,
        "pictures": torch.rand(size, 1, 3, SIDE, SIDE),
        "proxy": proxy,
        "proxy_bands": three,
    }


def convolution_of(batch: dict[str, Any], patch: int) -> tuple[published.Convolution, str]:
    """A convolution that is right in bf16 on this processor for these bands."""
    for image in (batch["image"], batch["proxy"]):
        part, kernel = image[:2], torch.randn(64, image.shape[1], patch, patch)
        right = published.plain_convolution(part, kernel, None)
        got = published.plain_convolution(part.bfloat16(), kernel.bfloat16(), None).float()
        if float((got - right).norm() / right.norm()) > 0.05:
            return published.unfolded_convolution, f"unfold: bf16 conv2d is wrong here with {image.shape[1]} channels"
    return published.plain_convolution, "conv2d"


def agree(objectives: dict[str, Pretraining], batch: dict[str, Any]) -> dict[str, float]:
    """Relative differences of the losses in float32, ours against the dense graph; on two images."""
    few = {k: v[:2] if isinstance(v, Tensor) else v for k, v in batch.items()}
    teacher = objectives["paper"]._teacher[0]
    assert teacher is not None
    teacher.float()
    gaps = {}
    with torch.no_grad():
        for name, dense in (("paper", published.paper_loss), ("visible", published.visible_loss)):
            theirs = float(dense(objectives[name], few, published.plain_convolution))
            gaps[name] = abs(float(objectives[name](few)["loss"]) - theirs) / abs(theirs)
            if gaps[name] > 1e-4:
                raise SystemExit(f"{name}: losses differ by {gaps[name]:.1e}")
    teacher.bfloat16()
    return gaps


def stepper(loss: Step, optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """One whole step, and the seconds it took."""

    def run() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        return time.perf_counter() - began

    return run


def peak_memory(loss: Step, parameters: list[torch.nn.Parameter]) -> int:
    """Bytes at the peak of forward and backward beyond what there is before; gradients are there already."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def flops(loss: Step) -> float:
    """Of a forward and a backward pass, attention counted as matrix products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
    return float(counter.get_total_flops())


def matmul_peak() -> float:
    """FLOP/s of one large bf16 matrix product, the best of ten."""
    a = torch.randn(4096, 4096).bfloat16()
    best = min(_timed(lambda: a @ a) for _ in range(10))
    return 2 * 4096**3 / best


def _timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the block the attribute is another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def ablations() -> dict[str, tuple[Any, str, Any]]:
    """What each measure is without itself: owner, name, stand-in."""
    embed, decode = encoder_module.DOFA._embed, MaskedAutoencoder.decode

    def embed_all(self: DOFA, x: Tensor, wavelengths: Any, keep: Tensor | None = None) -> Any:
        tokens, grid, waves = embed(self, x, wavelengths, None)
        if keep is not None:
            index = keep[..., None].expand(-1, -1, tokens.shape[-1])
            tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], 1)
        return tokens, grid, waves

    def predict_all(
        self: MaskedAutoencoder, latent: Tensor, waves: Tensor, keep: Tensor, masked: Tensor, grid: Any
    ) -> Any:
        head = self.decoder_pred.forward

        def dense(tokens: Tensor, bands: Tensor) -> Tensor:
            # As many rows again as the visible patches and CLS would take.
            more = tokens[:, : keep.shape[1] + 1]
            whole = head(torch.cat([more, tokens], 1), bands)
            return whole[:, more.shape[1] :] + 0 * whole[:, : more.shape[1]].mean()

        with replaced(self.decoder_pred, "forward", dense):
            return decode(self, latent, waves, keep, masked, grid)

    def plain_error(pred: Tensor, image: Tensor, patch: int, index: Tensor, valid: Tensor | None = None) -> Any:
        target = mae_module.patch_targets(image, patch, index, valid).normalised
        error = ((pred.float().reshape(target.shape) - target) ** 2).mean((2, 3))
        return error.mean(), error.detach(), torch.ones_like(error)

    return {
        "only visible patches embedded": (encoder_module.DOFA, "_embed", embed_all),
        "only masked patches predicted": (MaskedAutoencoder, "decode", predict_all),
        "attention by three products": (
            vit,
            "attend",
            lambda q, k, v, recompute: F.scaled_dot_product_attention(q, k, v),
        ),
        "activations computed again": (objective_module, "MANY_BANDS", 10**6),
        "error in pieces, kept in bf16": (mae_module, "masked_error", plain_error),
    }


def measure(plus: bool, sensor: str, repeats: int, compiled: bool, ablate: bool, peak: float) -> list[dict[str, Any]]:
    """All rows of one sensor."""
    objectives, batch = build(plus, sensor)
    paper = objectives["paper"]
    gaps = agree(objectives, batch)
    convolution, told = convolution_of(batch, paper.mae.patch)
    losses: dict[str, Step] = {
        "plain": lambda: published.paper_loss(paper, batch, convolution),
        "paper": lambda: objectives["paper"](batch)["loss"],
        "visible": lambda: objectives["visible"](batch)["loss"],
    }
    if compiled:
        losses = {name: torch.compile(loss) for name, loss in losses.items()}
    parameters = [p for p in paper.parameters() if p.requires_grad]
    plain = torch.optim.AdamW(parameters, lr=0.0)
    fused = adamw(paper, OptimConfig(lr=1e-12))
    sides = {name: stepper(loss, plain if name == "plain" else fused) for name, loss in losses.items()}
    if ablate:
        sides["AdamW in one pass"] = stepper(losses["paper"], plain)
        for name, where in ablations().items():
            sides[name] = _within(where, sides["paper"])
    warm = {name: run() for name, run in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            seconds[name].append(run())
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    counted = {name: 0.0 if compiled else flops(losses[name]) for name in losses}
    memory = {name: 0 if compiled else peak_memory(losses[name], parameters) for name in losses}
    rows = []
    prefix = "plus-" if plus else ""
    for name in ("paper", "visible"):
        ratios = [p / s for p, s in zip(seconds["plain"], seconds[name], strict=True)]
        rows.append(
            {
                "row": f"{prefix}{name}-{sensor}",
                "ratio": middle["plain"] / middle[name],
                "spread": [min(ratios), max(ratios)],
                "seconds": {"plain": seconds["plain"], "ours": seconds[name]},
                "first": {"plain": warm["plain"], "ours": warm[name]},
                "share of peak": {
                    "plain": counted["plain"] / middle["plain"] / peak,
                    "ours": counted[name] / middle[name] / peak,
                },
                "gigabytes": {"plain": memory["plain"] / 1e9, "ours": memory[name] / 1e9},
                "memory ratio": None if compiled else memory[name] / memory["plain"],
                "loss difference in float32": gaps[name],
                "plain convolution": told,
            }
        )
        shown = rows[-1]
        memo = "" if compiled else f"{shown['gigabytes']['ours']:.2f} of {shown['gigabytes']['plain']:.2f} GB"
        print(
            f"{shown['row']:20} {shown['ratio']:.2f} × ({min(ratios):.2f} … {max(ratios):.2f})  "
            f"{middle['plain']:.2f} s → {middle[name]:.2f} s  {shown['share of peak']['plain']:.0%} → "
            f"{shown['share of peak']['ours']:.0%} of peak  {memo}  loss {gaps[name]:.0e}  {told}",
            flush=True,
        )
    without = {name: middle[name] / middle["paper"] for name in sides if name not in losses}
    if without:
        rows[0]["without"] = without
        for name, factor in without.items():
            print(f"{'':20} without {name}: {factor:.2f} × the time", flush=True)
    return rows


def _within(where: tuple[Any, str, Any], run: Callable[[], float]) -> Callable[[], float]:
    def changed() -> float:
        with replaced(*where):
            return run()

    return changed


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sensors", nargs="+", choices=list(SENSORS), default=list(SENSORS))
    parser.add_argument("--models", nargs="+", choices=("base", "plus"), default=["base", "plus"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    peak = matmul_peak()
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    print(f"{processor}, {torch.get_num_threads()} threads, bf16 matrix products {peak / 1e9:.0f} GFLOP/s")
    rows = []
    for model in args.models:
        for sensor in args.sensors:
            rows += measure(model == "plus", sensor, args.repeats, args.compiled, args.ablate, peak)
            record = {"processor": processor, "threads": torch.get_num_threads(), "torch": torch.__version__}
            if args.json:
                args.json.write_text(json.dumps({**record, "matmul_flops": peak, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
