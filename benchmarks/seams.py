"""How visible tile borders are in features of real scenes, for overlaps and halos.

    python benchmarks/seams.py --weights MODEL --data ../shared/data --json seams.json

Attention and positions reach over a whole tile, so that tiles cannot equal the whole image. What can be seen in a map
is a step: the mean distance between the features of neighbouring cells where one tile gives way to the next (the middle
of the zone over which they fade), over that of all other neighbours. 1 is invisible. Beside it stands the distance to
the features of the whole image in one piece, relative to their spread, and the number of tiles run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dofa
from dofa.inference.features import Embedding, embed
from dofa.inference.tiles import Plan
from dofa.scene.scene import open_scene


def scenes(data: Path) -> dict[str, dict[str, Any]]:
    """Real scenes, and how they are opened."""
    return {
        "naip": {"scene": sorted((data / "naip").glob("*.tif"))[0], "sensor": "naip-rgbn"},
        "sentinel-1": {
            "scene": sorted((data / "sen1floods11" / "S1Hand").glob("*.tif"))[0],
            "sensor": "sentinel-1-grd",
        },
        "landsat-7": {
            "scene": data / "landsat" / "LE70220491999322EDC01_stack.gtif",
            "sensor": "landsat-7-l2-sr",
            "bands": ["B1", "B2", "B3", "B4", "B5", "B7", None, None],
        },
    }


def steps(features: NDArray[np.float32], plan: Plan) -> tuple[float, float]:
    """Mean distance between neighbouring cells across tile borders, and elsewhere."""
    down = np.linalg.norm(np.diff(features, axis=1), axis=0)
    right = np.linalg.norm(np.diff(features, axis=2), axis=0)
    at, away = [], []
    for distance, passes, axis in ((down, plan.row_passes, 0), (right, plan.col_passes, 1)):
        border = np.zeros(distance.shape[axis], bool)
        for one in passes:
            for first, last in one.zones:
                # Between the two cells in the middle of the zone, in cells of the output.
                middle = (one.starts[0] + (first + last) // 2 * one.cell) // plan.stride
                border[middle - 1] = True
        moved = np.moveaxis(distance, axis, 0)
        at.append(moved[border].ravel())
        away.append(moved[~border].ravel())
    return float(np.nanmean(np.concatenate(at))), float(np.nanmean(np.concatenate(away)))


def measure(one: Embedding, reference: NDArray[np.float32] | None) -> dict[str, float]:
    """One setting on one scene."""
    features = one.array()
    at, away = steps(features, one.plan)
    out = {
        "seam": at / away,
        "tiles": float(sum(len(one.plan.tiles_of(b)) for b in range(len(one.plan.blocks)))),
    }
    if reference is not None:
        spread = np.sqrt(np.nanmean((reference - np.nanmean(reference, (1, 2), keepdims=True)) ** 2))
        out["from whole"] = float(np.sqrt(np.nanmean((features - reference) ** 2)) / spread)
    return out


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--block", default="pooled", help="whose features: pooled, or a number")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = dofa.load(args.weights)
    patch, tile = model.config.patch, model.config.image_size
    block = args.block if args.block == "pooled" else int(args.block)
    rows = []
    for name, how in scenes(args.data).items():
        opened = open_scene(how["scene"], how["sensor"], bands=how.get("bands"))
        stats = None if opened.parts[0].sensor.name in model.config.sensors else "scene"
        whole = embed(
            opened,
            model,
            blocks=[block],
            tile=patch * (max(opened.height, opened.width) // patch + 1),
            stats=stats,
        )
        reference = whole.array()
        for share in (0, 8, 4, 3, 2):
            for halo in (0, 1, 2):
                overlap = 0 if share == 0 else patch * max(1, round(tile / share / patch))
                if 2 * halo * patch > overlap:
                    continue
                one = embed(opened, model, blocks=[block], tile=tile, overlap=overlap, stats=stats)
                plan = Plan(**{**vars_of(one.plan), "halo": halo * patch})
                one = Embedding(one.inputs, plan, one.tiles, one.meta, one.settings)
                row = {"scene": name, "overlap": overlap, "halo": halo * patch, **measure(one, reference)}
                rows.append(row)
                print(
                    f"{name:11} overlap {overlap:3} halo {halo * patch:3}: seam {row['seam']:.3f}, from the whole "
                    f"{row['from whole']:.3f}, {row['tiles']:.0f} tiles",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps({"tile": tile, "patch": patch, "rows": rows}, indent=1))


def vars_of(plan: Plan) -> dict[str, Any]:
    """A plan's fields."""
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


if __name__ == "__main__":
    main()
