"""The demo from top to bottom: make data, pack, pretrain, look, probe, write the page."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

from dofa.corpus.store import SensorStore, open_stores
from dofa.datasets.opening import read_labelled_store
from dofa.demo import corpora, pictures
from dofa.demo.report import METHODS, Findings, Probed, write_report
from dofa.errors import ConfigError, DataError
from dofa.evaluation.probe import probe
from dofa.evaluation.probe_result import ProbeResult
from dofa.model import checkpoint
from dofa.model.mae import MaskedAutoencoder
from dofa.train.config import PretrainConfig
from dofa.train.evaluate import evaluate_store
from dofa.train.log import read_log
from dofa.train.objective import build_model
from dofa.train.pretrain import pretrain
from dofa.train.recipes import load_config

Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MARK = "demo.json"  # tells a folder of ours from somebody's own
FIGURES = ("curves.png", "bars.png", "reconstructions.png", "real.png", "features.png")
OURS = ("corpus", "probe", "run", "report.html", MARK, *FIGURES)
# Scenes of every class to learn from and to be judged on; EnMAP's 202 bands cost what they cost.
LEARN = dict.fromkeys(corpora.TRAINED, 80) | {"enmap-202": 10}
JUDGE = dict.fromkeys(corpora.TRAINED, 14) | dict.fromkeys(corpora.NEVER_TRAINED, 50) | {"enmap-202": 8}
# Shares of the micro-batches: speckle teaches little, EnMAP costs twice as much, and real pictures are few.
WEIGHTS = {"sentinel-1-grd": 0.4, "enmap-202": 0.3}
REAL_WEIGHT = 0.06
DEPTH = 6  # of the recipe's 12 blocks: twice the updates in the minutes there are, and features pass random after ~500
CROP_AREA = (0.4, 1.0)  # random crops of the scenes, resized: without them a few thousand scenes are learned by heart
PENALTIES = (0.1, 1.0, 10.0, 100.0)
LEAST_SECONDS, LEAST_UPDATES = 30.0, 40  # of training, however short the minutes
OTHER_SECONDS = 60.0  # judging held-out images, classifiers, pictures and the page


def run_demo(
    out: str | Path = "demo-out", corpus: list[str] | None = None, minutes: float = 4.5, seed: int = 0
) -> Path:
    """Learn five sensors with one model, offline, and write a page about it.

    Simulates landscapes, packs them as five sensors see them, pretrains the recipe cpu-tiny on them and on the real
    pictures that come with the package, reconstructs held-out images, and probes the frozen features on the five
    sensors and on two that were never trained on.

    Args:
        out: folder for everything; a folder of an earlier demo is written anew.
        corpus: packed stores to learn instead of the simulated ones; those with labels are probed.
        minutes: of the whole, within the processor's means: training takes what the rest leaves.
        seed: of scenes, weights and every other draw.

    Returns:
        The page, report.html.

    Raises:
        ConfigError: minutes not above 0, or matplotlib is missing.
        DataError: the folder holds something else, or stores that cannot be used.
    """
    began = time.monotonic()
    if not minutes > 0:
        raise ConfigError(f"minutes is {minutes}; above 0")
    # One thread computes and one process reads. Threads of a step this small wait for each other, and where anything
    # else runs on the machine a step of 0.1 s takes several.
    torch.set_num_threads(1)
    out = Path(out)
    clear(out)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"  {text}", highlight=False)

    console.rule("[bold]1  data", align="left")
    if corpus:
        stores = open_stores(corpus)
        judged = {name: store for name, store in stores.items() if store.labels is not None}
        urls = list(corpus)
    else:
        stores, judged = simulate(out, seed, say)
        urls = [str(out / "corpus")]

    console.rule("[bold]2  pretraining", align="left")
    config = configure(urls, stores, out / "run", seed)
    config, encode_seconds = choose_settings(config, stores)
    images = 2 * sum(store.count for store in judged.values())  # trained and random weights
    left = 60 * minutes - (time.monotonic() - began) - images * encode_seconds - OTHER_SECONDS
    config = fit_to(config, stores, max(LEAST_SECONDS, left), say)
    pretrain(config)
    mae = checkpoint.load_mae(out / "run" / "model").eval()

    console.rule("[bold]3  held-out images", align="left")
    errors = [
        evaluate_store(mae, store, crop=corpora.SIDE, masks=2, limit=48, seed=seed).summary()
        for store in stores.values()
        if len(store.indices("val"))
    ]
    for row in errors:
        say(f"{row['sensor']}: masked error {row['error']:.3f}, floor {row['floor']:.3f}")
    shown = reconstructions(mae, stores, seed)
    features = pictures.real_features(mae.encoder)

    console.rule("[bold]4  probe", align="left")
    probed = run_probe(mae, judged, set(stores), out, config.run.precision == "bf16-mixed", seed)

    findings = Findings(
        simulated=not corpus,
        config=config,
        log=read_log(out / "run"),
        stores=stores,
        errors=errors,
        reconstructions=shown,
        features=features,
        probed=probed,
        seconds=time.monotonic() - began,
    )
    page = write_report(out, findings)
    table(console, errors, probed)
    console.print(f"[bold]{page}[/bold] after {time.monotonic() - began:.0f} s", highlight=False)
    return page


def clear(out: Path) -> None:
    """Make the folder ready; only what an earlier demo wrote is removed.

    Raises:
        DataError: it holds something that no demo wrote.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise DataError(f"{out} holds files of something else: choose a new folder with --out")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: choose a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    for name in OURS:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    (out / MARK).write_text(json.dumps({"written_by": "dofa demo"}) + "\n", encoding="utf-8")


def simulate(out: Path, seed: int, say: Callable[[str], None]) -> tuple[dict[str, SensorStore], dict[str, SensorStore]]:
    """Pack the scenes to learn from and those to be judged on.

    Args:
        out: folder of the demo.
        seed: of the scenes.
        say: prints a line.

    Returns:
        The stores to learn from and those to be judged on, by sensor.
    """
    first = 1_000_000 * seed
    corpora.pack_simulated(out / "corpus", LEARN, first, held_out=True, shared=False, say=say)
    corpora.pack_real(out / "corpus")
    corpora.pack_simulated(
        out / "probe", JUDGE, first + corpora.PROBE_SEED, held_out=False, shared=True, say=lambda text: None
    )
    judged = open_stores(out / "probe")
    return open_stores(out / "corpus"), {name: judged[name] for name in JUDGE}


def configure(urls: Sequence[str], stores: dict[str, SensorStore], run: Path, seed: int) -> PretrainConfig:
    """The recipe cpu-tiny for these stores and small images.

    Args:
        urls: of the stores.
        stores: by sensor.
        run: folder of the run.
        seed: of the run.
    """
    weights = {name: REAL_WEIGHT if name.endswith(corpora.REAL) else WEIGHTS.get(name, 1.0) for name in stores}
    settings: dict[str, Any] = {
        "data.stores": list(urls),
        "model.changes.depth": DEPTH,
        "data.crop": corpora.SIDE,
        "data.crop_area": CROP_AREA,
        "data.weights": weights,
        "data.jitter.share": 0.0,
        "data.band_keep": 1.0,
        "optim.warmup_ratio": 1 / 12,
        "run.out": str(run),
        "run.seed": seed,
        "run.evaluate_every": 0,
        "run.pictures_every": 0,
        "run.save_every": 100_000,
    }
    return load_config("cpu-tiny", [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def choose_settings(config: PretrainConfig, stores: dict[str, SensorStore]) -> tuple[PretrainConfig, float]:
    """The precision this processor is faster in, and seconds to encode one image.

    Args:
        config: of the run.
        stores: by sensor.
    """
    store = min(stores.values(), key=lambda s: s.shape[0])
    tried = {name: measure_updates(config, [store], name == "bf16-mixed")[0] for name in PRECISIONS}
    precision: Precision = min(tried, key=lambda key: tried[key])
    model = build_model(config.model).encoder.eval()
    with torch.inference_mode():
        start = time.perf_counter()
        model.forward_features(torch.zeros(32, store.shape[0], corpora.SIDE, corpora.SIDE), store.sensor)
    took = (time.perf_counter() - start) / 32
    workers = int((os.cpu_count() or 1) > 1)
    return replace(config, run=replace(config.run, precision=precision, workers=workers)), took


def fit_to(
    config: PretrainConfig, stores: dict[str, SensorStore], seconds: float, say: Callable[[str], None]
) -> PretrainConfig:
    """The same run with as many updates as the time allows.

    Args:
        config: of the run.
        stores: by sensor.
        seconds: that training may take.
        say: prints a line.
    """
    weights, run = config.data.weights, config.run
    assert isinstance(weights, dict)
    cost = measure_updates(config, list(stores.values()), run.precision == "bf16-mixed")
    per_update = sum(weights[n] * c for n, c in zip(stores, cost, strict=True)) / sum(weights[n] for n in stores)
    updates = max(LEAST_UPDATES, int(seconds / per_update))
    say(f"an update takes {1000 * per_update:.0f} ms in {run.precision}: {updates} updates in {seconds:.0f} s")
    return replace(config, run=replace(run, updates=updates, log_every=max(1, updates // 60)))


def measure_updates(config: PretrainConfig, stores: Sequence[SensorStore], bf16: bool) -> list[float]:
    """Seconds of one update of each sensor, on noise, after one to warm up.

    Args:
        config: of the run.
        stores: whose updates to time.
        bf16: under autocast, or in float32.
    """
    mae = build_model(config.model).train()
    adam = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=0.0)
    batch = config.data.batch
    known: dict[tuple[int, ...], float] = {}
    out = []
    for store in stores:
        count = batch if isinstance(batch, int) else batch.get(store.name, batch.get("default", 16))
        shape = (count, store.shape[0], corpora.SIDE, corpora.SIDE)
        for _ in range(2 if shape not in known else 0):
            start = time.perf_counter()
            image = torch.from_numpy(store.scaling.normalise(np.zeros(shape, np.float32))) + torch.randn(shape)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = mae(image, store.sensor)["loss"]
            loss.backward()
            adam.step()
            adam.zero_grad()
            known[shape] = time.perf_counter() - start
        out.append(known[shape])
    return out


def reconstructions(
    mae: MaskedAutoencoder, stores: dict[str, SensorStore], seed: int
) -> list[tuple[str, str, list[tuple[str, Any]]]]:
    """Sensor, note, and pictures of a held-out image of every store, then of a real picture never trained on.

    Args:
        mae: trained.
        stores: by sensor.
        seed: of what is hidden.
    """
    out = []
    for name, store in stores.items():
        held = store.indices("val")
        if len(held):
            trained = mae.encoder.config.sensors[name].scaling
            image = pictures.stored_image(store, int(held[len(held) // 2]), trained)
            note = "real, held-out place" if name.endswith(corpora.REAL) else "held-out place"
            out.append((name, note, pictures.reconstruction(mae, image, seed)))
    delta = pictures.real_image("landsat-8-l1-toa/delta", (64, 48), corpora.SIDE)
    out.append(("landsat-8-l1-toa", "real, never trained on", pictures.reconstruction(mae, delta, seed)))
    return out


def run_probe(
    mae: MaskedAutoencoder, judged: dict[str, SensorStore], trained: set[str], out: Path, bf16: bool, seed: int
) -> list[Probed]:
    """Frozen features, random weights and band statistics on every labelled sensor.

    Args:
        mae: trained.
        judged: labelled stores, by sensor.
        trained: sensors it has learned.
        out: folder of the demo.
        bf16: whether features are computed under autocast.
        seed: of folds and random weights.
    """
    probed = []
    bar = Progress(TextColumn("  probing"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True))
    # numpy's own threads, like torch's, wait for each other on matrices this small: three times longer with two.
    with threadpool_limits(1), bar:
        for name, store in bar.track(judged.items()):
            result: ProbeResult = probe(
                mae.encoder,
                read_labelled_store(store),
                by="image",
                random_seeds=1,
                penalties=PENALTIES,
                precision="bf16" if bf16 else "float32",
                seed=seed,
                out=out / "run" / "probe" / name,
            )
            probed.append(Probed(name, name in trained, result))
    return probed


def table(console: Console, errors: list[dict[str, Any]], probed: list[Probed]) -> None:
    """The findings on the terminal.

    Args:
        console: to print on.
        errors: reconstruction errors, one dictionary a sensor.
        probed: what the probes found; without any the errors are printed.
    """
    if not probed:
        for row in errors:
            console.print(f"  {row['sensor']}: {row['difference']:+.3f} against the floor", highlight=False)
        return
    found = Table("sensor", *METHODS, "trained − random (95 %)", title="probe, accuracy in %")
    for p in probed:
        d = p.difference
        span = "" if d.low is None or d.high is None else f" ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
        found.add_row(
            p.sensor if p.trained else f"{p.sensor} (never trained on)",
            *(f"{100 * row.score.value:.1f}" for row in p.rows),
            f"{100 * d.value:+.1f}{span}",
        )
    console.print(found)
