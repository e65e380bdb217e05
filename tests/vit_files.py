"""An ordinary RGB ViT with random weights: as a folder that `load_teacher` reads, and run with plain torch."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

MEAN, STD = (0.45, 0.4, 0.35), (0.2, 0.25, 0.3)


def write_vit(folder: Path, width: int, depth: int, heads: int, patch: int, image_size: int, seed: int = 0) -> Path:
    """A folder as timm's on the hub, with MEAN and STD; every weight is felt in the output."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(shape, generator=draw)

    state = {
        "cls_token": rand(1, 1, width),
        "pos_embed": rand(1, 1 + (image_size // patch) ** 2, width),
        "patch_embed.proj.weight": rand(width, 3, patch, patch, scale=1 / patch),
        "patch_embed.proj.bias": rand(width),
        "norm.weight": 1 + rand(width),
        "norm.bias": rand(width),
    }
    for block in (f"blocks.{i}." for i in range(depth)):
        for name, out, inside in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            state[f"{block}{name}.weight"] = rand(out, inside, scale=inside**-0.5)
            state[f"{block}{name}.bias"] = rand(out)
        for name in ("norm1", "norm2"):
            state |= {f"{block}{name}.weight": 1 + rand(width), f"{block}{name}.bias": rand(width)}
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    told = {"num_heads": heads, "pretrained_cfg": {"mean": MEAN, "std": STD, "license": "apache-2.0"}}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


@torch.no_grad()
def plain_blocks(state: dict[str, Tensor], x: Tensor, heads: int, keep: Tensor | None = None) -> list[Tensor]:
    """Outputs (B, 1 + N or K, D) of every block for a normalised image, from the weights and the definition.

    Positions are those of the table, or carried to the image's grid as `interpolate_positions` does; `keep` (B, K)
    leaves only those patches, in that order.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    table, side = state["pos_embed"], math.isqrt(state["pos_embed"].shape[1] - 1)
    places = table[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    if x.shape[-2:] != (side, side):
        places = F.interpolate(places, size=x.shape[-2:], mode="bicubic", antialias=True)
    x = (x + places).flatten(2).transpose(1, 2)
    if keep is not None:
        x = torch.stack([image[chosen] for image, chosen in zip(x, keep, strict=True)])
    x = torch.cat([(state["cls_token"] + table[:, :1]).expand(len(x), -1, -1), x], dim=1)
    found = []
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))):
        w = {key.removeprefix(f"blocks.{i}."): value for key, value in state.items() if key.startswith(f"blocks.{i}.")}
        y = F.layer_norm(x, (width,), w["norm1.weight"], w["norm1.bias"], eps=1e-6)
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in F.linear(y, w["attn.qkv.weight"], w["attn.qkv.bias"]).chunk(3, dim=-1)
        )
        mixed = ((q @ k.transpose(-2, -1) / math.sqrt(width / heads)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, w["attn.proj.weight"], w["attn.proj.bias"])
        y = F.layer_norm(x, (width,), w["norm2.weight"], w["norm2.bias"], eps=1e-6)
        y = F.gelu(F.linear(y, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        x = x + F.linear(y, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
        found.append(x)
    return found


def as_normal(rgb: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """(..., 3, H, W) in [0, 1] as the teacher of `write_vit` normalises it."""
    return (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
