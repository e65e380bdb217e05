"""What a run shows of itself while it trains: held-out errors, and pictures of what it reconstructs."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from dofa import plots
from dofa.corpus.store import SensorStore
from dofa.train.config import PretrainConfig
from dofa.train.data import Source, held_out_batch
from dofa.train.evaluate import evaluate
from dofa.train.objective import Pretraining

EVALUATION_BATCH = 16


def measure(
    objective: Pretraining,
    fabric: Fabric,
    stores: dict[str, SensorStore],
    sources: dict[str, Source],
    config: PretrainConfig,
) -> dict[str, float]:
    """Held-out error, floor and their paired difference for every sensor that has held-out images.

    Every process measures everything: the forward pass of sharded parameters needs all of them.
    """
    row: dict[str, float] = {}
    mae = objective.mae
    objective.eval()
    for name, source in sources.items():
        held = source.held_out(config.run.evaluate_images)
        if len(held):
            result = evaluate(
                partial(_judge, objective, fabric, name),
                stores[name],
                source,
                held,
                mae.encoder.config.patch,
                mae.mask_config.ratio,
                masks=1,
                batch=EVALUATION_BATCH,
                seed=config.run.seed,
            ).summary()
            row |= {f"held_out/{name}": result["error"], f"floor/{name}": result["floor"]}
            row[f"difference/{name}"] = result["difference"]
    objective.train()
    return row


def _judge(objective: Pretraining, fabric: Fabric, sensor: str, sample: dict[str, Any]) -> torch.Tensor:
    loss: torch.Tensor = objective(fabric.to_device({**sample, "sensor": sensor}), want="image_loss")
    return loss


@torch.no_grad()
def draw(
    objective: Pretraining,
    fabric: Fabric,
    stores: dict[str, SensorStore],
    sources: dict[str, Source],
    config: PretrainConfig,
    path: Path,
) -> None:
    """Original, masked and reconstructed pictures of one held-out (or else training) image of each sensor."""
    patch, ratio = objective.mae.encoder.config.patch, objective.mae.mask_config.ratio
    rows = []
    objective.eval()
    for name, source in sources.items():
        shown = source.held_out(1) if len(source.val) else source.train[:1]
        sample = held_out_batch(stores[name], source, patch, shown, config.run.seed)
        made = objective(fabric.to_device({**sample, "sensor": name}), want="reconstruction").float().cpu().numpy()[0]
        image = sample["image"].numpy()[0]
        side = source.side // patch
        seen = sample["noise"][0].argsort(stable=True)[: config.model.mask.visible(side * side)]
        hidden = torch.ones(side * side, dtype=torch.bool).index_fill(0, seen, False).view(side, side).numpy()
        valid = None if sample["valid"] is None else sample["valid"].numpy()[0]
        three = rendering(source)
        limits = plots.stretch_limits(image, three, valid_hw=valid)
        original = plots.composite(image, three, valid_hw=valid, limits=limits)
        rows.append(
            plots.Row(
                f"{name}",
                [
                    ("original", original),
                    (f"{ratio:.0%} hidden", plots.hide_patches(original, hidden, patch)),
                    ("reconstruction", plots.composite(made, three, valid_hw=valid, limits=limits)),
                ],
            )
        )
    objective.train()
    if fabric.is_global_zero:
        plots.reconstruction_panel(path, rows)


def can_draw(say: Callable[[str], None]) -> bool:
    """Whether pictures can be drawn; where matplotlib is missing a line says so, and training goes on without them.

    Args:
        say: prints a line.
    """
    if find_spec("matplotlib") is not None:
        return True
    say('no pictures are drawn, matplotlib is not installed: pip install "dofa[plot]"')
    return False


def verdict(measured: Mapping[str, float], reconstruction: bool, updates: int, out: Path) -> str:
    """What a finished run is worth, in one line: error against the floor by sensor, the model and what comes next.

    Args:
        measured: the last `measure`.
        reconstruction: whether masked pixels were predicted at all.
        out: folder of the run.
    """
    gaps = {key.removeprefix("difference/"): value for key, value in measured.items() if key.startswith("difference/")}
    better = [f"{name} {gap:+.3f}" for name, gap in gaps.items() if gap < 0]
    worse = [f"{name} {gap:+.3f}" for name, gap in gaps.items() if gap >= 0]
    said = [f"below the floor: {', '.join(better)}"] if better else []
    if worse:
        said.append(
            f"NOT below the floor: {', '.join(worse)} (no better than the mean spectrum of what is visible: train "
            f"longer, --resume --set run.updates={2 * updates}, or on more images)"
        )
    if not gaps:
        why = "no image is held out" if reconstruction else "no masked pixels were predicted"
        said = [f"not measured against the floor, {why}"]
    model = out / "model"
    return (
        f"finished {updates} updates; held-out masked error {'; '.join(said)}; model: {model}; "
        f"next: dofa probe --weights {model} --data …"
    )


def rendering(source: Source) -> list[int]:
    """Bands drawn as red, green and blue: the sensor's RGB proxy, or the first, middle and last."""
    if source.sensor.renderings:
        return source.sensor.index(next(iter(source.sensor.renderings.values())))
    bands = len(source.sensor.bands)
    return [0, bands // 2, bands - 1]
