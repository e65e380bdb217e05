"""Memory of one fine-tuning step: what the model owns, what forward leaves for backward, and what comes on top.

    python benchmarks/finetune_memory.py --json memory.json        # base, 2 images of 224 pixels: about two minutes
    python benchmarks/finetune_memory.py --batch 16 --rows full full-checkpointing

Every row is a process of its own: a step on small images first, so that gradients and moments are there, then one as
wide as asked. `owned` counts weights, gradients and both moments of Adam from the tensors themselves. `kept` is what
tensors take when the forward pass is over beyond that: the activations which wait for the backward pass. `peak` is the
most they take at any moment of the step, activations that are computed again and passing gradients included. Both by
PyTorch's own record of allocations. `process` is the high-water mark (VmHWM) of the whole process, interpreter and
libraries included, in a step without the recorder.
"""

import argparse
import gc
import json
import platform
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dofa import sensors
from dofa.datasets.labelled import LabelledImages
from dofa.evaluation.backbones import DofaBackbone
from dofa.finetuning.learner import Learner, freeze_unreached
from dofa.finetuning.settings import FinetuneConfig
from dofa.model.config import preset
from dofa.model.encoder import DOFA

SIDE, CLASSES, SENSOR = 224, 10, "naip-rgbn"
ROWS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-checkpointing": {"method": "full", "checkpointing": True},
    "upernet": {"method": "full", "decoder": "upernet"},
    "upernet-checkpointing": {"method": "full", "decoder": "upernet", "checkpointing": True},
    "upernet-frozen": {"method": "frozen", "decoder": "upernet"},
    "lora": {"method": "lora"},
}


def stand_in(task: str) -> LabelledImages:
    """Labelled images as a learner wants to know them; none is ever read."""
    sensor = sensors.get(SENSOR)
    assert sensor.scaling is not None
    return LabelledImages(
        name="none",
        sensor=sensor,
        scaling=sensor.scaling.without_stats(),
        class_names=tuple(f"class {k}" for k in range(CLASSES)),
        labels=np.zeros(1, np.int64),
        sources=("none",),
        shape=(len(sensor.bands), SIDE, SIDE),
        read=lambda index: (np.zeros((len(sensor.bands), SIDE, SIDE), np.uint8), None),
        fingerprint="none",
        task="segmentation" if task == "segmentation" else "classification",
    )


class Step:
    """A learner with its optimiser, and batches of noise."""

    def __init__(self, model: str, tuning: FinetuneConfig) -> None:
        torch.manual_seed(0)
        self.dense = tuning.decoder != "linear"
        data = stand_in("segmentation" if self.dense else "classification")
        self.bands = data.shape[0]
        self.learner = Learner(DofaBackbone(DOFA(preset(model)), model), data, tuning)
        small = self.batch(2, 64)
        freeze_unreached(self.learner, small["image"], small["label"])
        self.learner.train()
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, fused=True)

    def batch(self, count: int, side: int) -> dict[str, torch.Tensor]:
        """Images of noise, all of one class."""
        label = (count, side, side) if self.dense else (count,)
        return {"image": torch.randn(count, self.bands, side, side), "label": torch.zeros(label, dtype=torch.long)}

    def run(self, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
        """One step; bytes after the forward pass, and at the peak."""
        with recorded() as forward:
            loss = self.learner(batch)["loss"]
        with recorded() as backward:
            loss.backward()
            self.optimizer.step()
        kept = sum(forward)
        return kept, max([*np.cumsum(forward), *(kept + np.cumsum(backward)), 0])

    def plain(self, batch: dict[str, torch.Tensor]) -> float:
        """One step without the recorder; seconds."""
        began = time.perf_counter()
        self.learner(batch)["loss"].backward()
        self.optimizer.step()
        return time.perf_counter() - began

    def owned(self) -> dict[str, int]:
        """Bytes of weights and buffers, of gradients, and of moments."""
        state = [*self.learner.parameters(), *self.learner.buffers()]
        moments = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return {
            name: sum(t.numel() * t.element_size() for t in tensors)
            for name, tensors in (("weights", state), ("gradients", gradients), ("moments", moments))
        }


@contextmanager
def recorded() -> Iterator[list[int]]:
    """Bytes allocated (freed below 0) while it lasts, in order; filled in at the end."""
    found: list[int] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield found
    kineto = profile.profiler
    assert kineto is not None
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    found += [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def high_water() -> int:
    """Bytes, of this process since the mark began anew."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(model: str, row: str, batch: int, threads: int) -> dict[str, Any]:
    """One row, in gigabytes."""
    torch.set_num_threads(threads)
    step = Step(model, FinetuneConfig(**ROWS[row]))
    step.plain(step.batch(2, 64))
    wide = step.batch(batch, SIDE)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    seconds = step.plain(wide)
    process = high_water()
    kept, peak = step.run(wide)
    owned = step.owned()
    sizes = {"owned": sum(owned.values()), **owned, "kept": kept, "peak": peak, "process": process}
    return {"row": row, "batch": batch, "seconds": seconds} | {name: float(n) / 1e9 for name, n in sizes.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "model": args.model}
    print(f"{args.model}, {args.batch} images of {SIDE} × {SIDE}, float32, GB", flush=True)
    rows = []
    for row in args.rows:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows.append(pool.submit(measure, args.model, row, args.batch, args.threads).result())
        told = rows[-1]
        print(
            f"{row:22} owned {told['owned']:.2f}  kept {told['kept']:.3f}  peak {told['peak']:.3f}  "
            f"process {told['process']:.2f}  {told['seconds']:.1f} s",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps({**about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
