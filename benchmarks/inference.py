"""Features of images: a specialised encoder against the plain graph of the public ports.

    python benchmarks/inference.py --json inference.json       # every row; the compiled ones take a C++ compiler
    python benchmarks/inference.py --no-compiled --repeats 9
    python benchmarks/inference.py --memory                    # of one pass of each side, beside the time

Rows are `<eager|compiled>-<s2|enmap>-b<batch>`: base size, 224 pixels, autocast bf16, pooled vectors, all sides
alternating in one process. The plain graph generates the kernel from the wavelengths in every call, embeds by a strided
convolution and casts the weights as autocast does (`published_step.py`; the convolution is unfold and a product where
bf16 `conv2d` is wrong on the processor). Ours is `DOFA.specialize(sensor, 224, torch.bfloat16)`; compiled,
`dofa.model.compiled`. The reference of the compiled rows is the plain graph without a compiler, which is what they
would be used instead of; the first call, which compiles, is stated.

Outputs are compared with float32 first: each side must agree to 2 %, and is told.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_step as published
import torch
from torch import Tensor

from dofa import create, sensors
from dofa.errors import ConfigError
from dofa.model.compiled import compiled
from dofa.model.encoder import DOFA
from dofa.sensors import Sensor

SENSORS = {"s2": "sentinel-2-dofa9", "enmap": "enmap-202"}
ROWS = (("s2", 32), ("s2", 1), ("enmap", 8), ("enmap", 1))
TARGETS = {"eager": (1.05, 1.3, 1.6, 4.0), "compiled": (1.15, 1.5, 2.0, 5.0)}
SIDE = 224
Side = Callable[[Tensor], Tensor]


def plain(model: DOFA, sensor: Sensor, convolution: published.Convolution) -> Side:
    """The plain graph: nothing is kept from call to call."""

    def run(image: Tensor) -> Tensor:
        x, _ = published.embed(model, image, sensor, convolution)
        for block in model.blocks:
            x = published.run(block, x)
        return model.forward_head(x, pre_logits=True)

    return run


def right_convolution(bands: int, patch: int) -> tuple[published.Convolution, str]:
    """A convolution that is right in bf16 on this processor for so many bands."""
    image, kernel = torch.randn(2, bands, SIDE, SIDE), torch.randn(64, bands, patch, patch)
    exact = published.plain_convolution(image, kernel, None)
    got = published.plain_convolution(image.bfloat16(), kernel.bfloat16(), None).float()
    if float((got - exact).norm() / exact.norm()) > 0.05:
        return published.unfolded_convolution, "unfold and a product: bf16 conv2d is wrong here"
    return published.plain_convolution, "conv2d"


def seconds(side: Side, image: Tensor) -> float:
    began = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        side(image)
    return time.perf_counter() - began


@torch.inference_mode()
def differences(sides: dict[str, Side], exact: Side, image: Tensor) -> dict[str, float]:
    """Of each side from float32, relative, over two images at most."""
    few = image[:2]
    right = exact(few)
    out = {}
    for name, side in sides.items():
        with torch.autocast("cpu", torch.bfloat16):
            out[name] = float((side(few).float() - right).norm() / right.norm())
        if not out[name] < 0.02:
            raise SystemExit(f"{name} differs from float32 by {out[name]:.1e}")
    return out


def peak_memory(side: Side, image: Tensor) -> int:
    """Bytes of tensors at the peak of a call beyond weights and images, by PyTorch's own record of allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        seconds(side, image)
    now = peak = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measure(model: DOFA, what: str, batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one sensor and batch."""
    sensor = sensors.get(SENSORS[what])
    image = torch.randn(batch, len(sensor.bands), SIDE, SIDE)
    convolution, told = right_convolution(len(sensor.bands), model.config.patch)
    sides = {"plain": plain(model, sensor, convolution), "eager": model.specialize(sensor, SIDE, torch.bfloat16)}
    warm: dict[str, float] = {}
    if args.compiled:
        fast = model.specialize(sensor, SIDE, torch.bfloat16)
        torch.compiler.reset()
        began = time.perf_counter()
        sides["compiled"] = compiled(fast)
        seconds(fast, image)
        warm["compiled"] = time.perf_counter() - began
    gaps = differences(sides, lambda few: model(few, sensor), image)
    for side in sides.values():
        seconds(side, image)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(1 if args.quick else args.repeats * (1 if batch > 1 else 3)):
        for name, side in sides.items():
            taken[name].append(seconds(side, image))
    rows = []
    for name in list(sides)[1:]:
        ratios = sorted(p / o for p, o in zip(taken["plain"], taken[name], strict=True))
        row = {
            "name": f"{name}-{what}-b{batch}",
            "reference": statistics.median(taken["plain"]),
            "ours": statistics.median(taken[name]),
            "unit": "seconds a batch",
            "ratio": statistics.median(ratios),
            "low": ratios[0],
            "high": ratios[-1],
            "asked": TARGETS[name][ROWS.index((what, batch))],
            "warm-up seconds": warm.get(name),
            "difference from float32": {"plain": gaps["plain"], "ours": gaps[name]},
            "plain convolution": told,
            "all seconds": {"plain": taken["plain"], "ours": taken[name]},
        }
        if args.memory:
            row["megabytes"] = {s: peak_memory(sides[s], image) / 1e6 for s in ("plain", name)}
        rows.append(row)
        after = f", first call {warm[name]:.0f} s" if name in warm else ""
        print(
            f"{row['name']:20} {row['reference']:8.3f} {row['ours']:8.3f}   {row['ratio']:.2f} "
            f"({row['low']:.2f}–{row['high']:.2f})  asked {row['asked']:.2f}   "
            f"{gaps['plain']:.1e} {gaps[name]:.1e}   {told}{after}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sensors", nargs="+", choices=list(SENSORS), default=list(SENSORS))
    parser.add_argument("--batches", nargs="+", type=int, help="only rows of these batches")
    parser.add_argument("--repeats", type=int, default=5, help="of a batch; three times as many of single images")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in about.splitlines() if line.startswith("model name")]
    machine = f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch "
    machine += f"{torch.__version__}, bf16"
    print(f"{machine}\n{'':20}    plain     ours   ratio (median of pairs, min–max)   differences from float32")
    torch.manual_seed(0)
    model, rows = create("base").eval(), []
    for what, batch in ROWS:
        if what not in args.sensors or (args.batches and batch not in args.batches):
            continue
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what an earlier row compiled would hide the warm-up
            try:
                rows += measure(model, what, batch, args)
            except ConfigError as error:
                raise SystemExit(f"{error}; here --no-compiled") from None
        if args.json:
            args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
