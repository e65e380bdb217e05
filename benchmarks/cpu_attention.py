"""Attention, forward and backward, in bf16 on a CPU: PyTorch's fused kernel against plain products.

`dofa.model.attention.attend` takes the plain products where they win. Both sides alternate within one run; processor
time is counted, so that a busy machine does not decide.

    python benchmarks/cpu_attention.py --repeats 7 --json out.json
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dofa.model.attention import attend

# name, batch, heads, tokens, width of a head
CASES = [
    ("tiny encoder, 37 tokens", 16, 3, 37, 64),
    ("tiny decoder, 145 tokens", 16, 4, 145, 32),
    ("base encoder, 50 tokens", 16, 12, 50, 64),
    ("base encoder, 197 tokens", 16, 12, 197, 64),
    ("base decoder, 197 tokens", 16, 16, 197, 32),
]


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def seconds(attention: object, qkv: Tensor) -> float:
    began = time.process_time()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attention(q, k, v).transpose(1, 2).flatten(2).sum().backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, batch, heads, tokens, width in CASES:
        qkv = torch.randn(batch, tokens, 3, heads, width, dtype=torch.bfloat16, requires_grad=True)
        q, k, v = qkv.detach().float().permute(2, 0, 3, 1, 4)
        exact = F.scaled_dot_product_attention(q, k, v)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        error = float((attend(q, k, v).detach().float() - exact).norm() / exact.norm())
        if error > 1e-2:
            raise SystemExit(f"{name}: plain products differ from float32 by {error:.1e}")
        seconds(fused, qkv), seconds(attend, qkv)
        pairs = [(seconds(fused, qkv), seconds(attend, qkv)) for _ in range(1 if args.quick else args.repeats)]
        ratios = sorted(a / b for a, b in pairs)
        reference, ours = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        row = {"name": name, "reference": reference, "ours": ours, "unit": "ms of processor time"}
        rows.append(row | {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "error": error})
        middle, low, high = statistics.median(ratios), ratios[0], ratios[-1]
        print(f"{name:26} {reference:8.1f} {ours:8.1f}   {middle:.2f} ({low:.2f}–{high:.2f})")
    if args.json:
        machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, bf16"
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
