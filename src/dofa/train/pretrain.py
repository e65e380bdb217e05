"""Masked pretraining on packed stores, from one process on a laptop to many nodes: `pretrain` reads top to bottom."""

import signal
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from dofa.addresses import redact_values
from dofa.corpus.store import open_stores
from dofa.errors import ConfigError
from dofa.io import write_atomically
from dofa.model.checkpoint import load_mae
from dofa.model.mae import MaskedAutoencoder
from dofa.model.prefit import patch_kernel
from dofa.model.teacher import Teacher, load_teacher
from dofa.train import forgetting
from dofa.train.checkpoint import checkpoints, load_state, lock_run, read_run_info, remove_partial, save_state
from dofa.train.config import PretrainConfig
from dofa.train.data import MicroBatches, Source, describe_sources, make_mixture
from dofa.train.launch import launch
from dofa.train.log import RunLog, Window, columns
from dofa.train.loop import stop_signal, train
from dofa.train.monitor import can_draw, draw, measure, verdict
from dofa.train.objective import (
    Pretraining,
    brings_decoder,
    build_model,
    learn_sensors,
    named_blocks,
    save_model,
    store_digest,
)
from dofa.train.optim import adamw, learning_rate
from dofa.train.recipes import LENGTH, differences, from_dict, to_yaml
from dofa.train.teacher_features import cached_teacher_features
from dofa.train.teacher_inputs import plan_teacher_inputs
from dofa.version import code_version

STANDARD_BATCHES = 32  # micro-batches whose teacher's features are standardised by


def pretrain(config: PretrainConfig, resume: bool = False) -> Path:
    """Train a masked autoencoder on the stores of a configuration.

    Under torchrun every process calls it. The run folder gets config.yaml, log.jsonl and log.csv, checkpoints/ with
    the training state, pictures/, and model/, the native model folder, written with every checkpoint; where
    `model.init` is trained further, also forgetting.json.

    Args:
        config: of the run (`load_config`).
        resume: continue from the newest checkpoint of `config.run.out`; starts anew where there is none yet.

    Returns:
        The run folder.

    Raises:
        ConfigError: settings that do not fit the stores, or to the run that is continued.
        DataError: a loss that is not finite; nothing written before is touched.
        CheckpointError: a checkpoint that cannot be read, or of a format from the future.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C, with the state saved.
    """
    run, out = config.run, Path(config.run.out)
    if not config.data.stores:
        raise ConfigError("data.stores is empty: name at least one packed corpus (dofa pack makes them)")
    config.check_init()
    stores = open_stores(list(config.data.stores))
    begun = find_checkpoint(config, resume) is not None  # refuses before anything is started
    fabric = launch(run)
    writes = fabric.is_global_zero

    torch.manual_seed(run.seed)
    teacher = None if config.distill.teacher is None else load_teacher(config.distill.teacher)
    mae = build_model(config.model, teacher, [store.sensor for store in stores.values()])
    mae.set_grad_checkpointing(config.model.gradient_checkpointing)
    known = set(mae.encoder.config.sensors)
    scalings = learn_sensors(mae, stores, config.data.statistics, teacher)
    initial = copy_weights(mae.encoder) if config.optim.keep_initial else None
    patch = mae.encoder.config.patch
    taught = teacher is not None and config.distill.weight > 0
    views = (
        plan_teacher_inputs({name: store.sensor for name, store in stores.items()}, config.distill) if taught else {}
    )
    sources = describe_sources(stores, scalings, config.data, patch, views)
    digests = {name: store_digest(store) for name, store in stores.items()}

    mixture = make_mixture(sources, config, known)
    updates = run.updates or mixture.updates(run.epochs or 1)
    data = MicroBatches(config, stores, sources, mixture, patch, fabric.global_rank, fabric.world_size)
    report = None
    if writes and config.model.init is not None and config.distill.reconstruction:
        report = forgetting.read_report(out) if begun else None
        if report is None:  # also of a run that continues: no checkpoint was loaded yet, `mae` is what init names
            mae.to(fabric.device)
            trained = brings_decoder(config.model.init)
            report = forgetting.begin(mae, stores, sources, mixture, known, config, trained)
            mae.cpu()

    objective = assemble(mae, sources, config, teacher, fabric)
    model = fabric.setup_module(objective)
    adam = adamw(objective, config.optim)  # after sharding, so that it holds what this process holds
    optimizer = fabric.setup_optimizers(adam)
    with ExitStack() as stack:
        stack.enter_context(lock_run(fabric, out))
        done = images = 0
        newest = find_checkpoint(config, resume)
        if newest is not None:
            facts = read_run_info(newest)
            check_stores(facts["stores"], digests)
            check_teacher(facts.get("teacher"), teacher)
            load_state(newest, objective, adam)
            done, images = facts["update"], facts["images"]
            check_length(done, updates, out)
        if writes:
            remove_partial(out / "checkpoints")
            write_atomically(out / "config.yaml", to_yaml(config).encode())
            if report is not None:
                forgetting.write_report(out, report)
        log = stack.enter_context(RunLog(out, columns(list(sources), objective.parts), done, updates, enabled=writes))
        if taught and teacher is not None:
            fit_to_teacher(objective, teacher, data, config, digests, fabric, log.say, anew=newest is None)
        log.say(describe_run(sources, updates, mixture.updates_per_epoch, done, fabric))
        if config.optim.generator_lr != 1:
            log.say(f"  the weight generator learns at {config.optim.generator_lr:g} × optim.lr")
        draws = bool(run.pictures_every) and can_draw(log.say)
        told = stack.enter_context(stop_signal())
        window = Window()
        measured: dict[str, float] = {}

        def keep(update: int) -> None:
            facts = {"images": images, "stores": digests, "config": redact_values(config.to_dict())}
            facts |= {"teacher": teacher.sha256} if teacher is not None else {}
            save_state(out / "checkpoints", update, objective, adam, facts, keep=run.keep, write=writes)
            provenance = {"code": code_version(), "updates": update, **facts}
            share = config.optim.keep_initial
            save_model(objective, out / "model", provenance, write=writes, initial=initial, keep_initial=share)

        for step in train(
            fabric,
            model,
            optimizer,
            stack.enter_context(closing(data.batches(done, updates))),
            sensors=list(sources),
            parts=objective.parts,
            start=done,
            updates=updates,
            accumulation=data.accumulation,
            rate=lambda update: learning_rate(update, updates, config.optim),
            clip=config.optim.clip,
            seed=run.seed,
            describe=data.describe,
            stop=told,
        ):
            update, last = step.update, step.update == updates
            images += step.images
            window.add(step)
            log.advance(update)
            row: dict[str, Any] = {}
            if due(update, run.log_every) or last:
                row = window.row(step, update / mixture.updates_per_epoch)
                window = Window()
            if due(update, run.evaluate_every) or (last and config.distill.reconstruction):
                measured = measure(objective, fabric, stores, sources, config)
                row |= measured
            if row:
                log.write({"update": update, **row})
            if draws and (due(update, run.pictures_every) or last):
                draw(objective, fabric, stores, sources, config, out / "pictures" / f"update-{update:08d}.png")
            if due(update, run.save_every) or last or step.stop:
                keep(update)
            if step.stop and not last:
                number = signal.Signals(told.number or signal.SIGTERM)
                log.say(
                    f"stopped by {number.name} after update {update}; the state is saved: run it again with --resume"
                )
                raise SystemExit(128 + number)  # as a shell says it
        if done >= updates:
            keep(done)  # a run killed between its last checkpoint and its model folder
            if config.distill.reconstruction:
                measured = measure(objective, fabric, stores, sources, config)
        if report is not None:
            report = forgetting.finish(report, load_mae(out / "model").to(fabric.device), stores, updates)
            forgetting.write_report(out, report)
            log.say("\n".join(report.lines()))
        log.say(verdict(measured, bool(config.distill.reconstruction), updates, out))
    return out


def assemble(
    mae: MaskedAutoencoder, sources: dict[str, Source], config: PretrainConfig, teacher: Teacher | None, fabric: Fabric
) -> Pretraining:
    """The objective, with its teacher in the run's precision where it is asked in every step.

    Args:
        mae: to be trained.
        teacher: None for none.

    Raises:
        ConfigError: an anchor without a teacher of the student's width and patch, or blocks that are not there.
    """
    distill, sensors = config.distill, {name: s.sensor for name, s in sources.items()}
    if teacher is None:
        return Pretraining(mae.train(), sensors)
    anchor = None
    if distill.anchor:
        kernel = patch_kernel(mae.encoder, teacher)
        width = mae.encoder.config.width
        anchor = (kernel[0].reshape(-1, width).to(fabric.device), kernel[1].to(fabric.device))
    teacher.to(fabric.device, torch.bfloat16 if config.run.precision == "bf16-mixed" else torch.float32)
    setting = "blocks" if distill.teacher_blocks is None else "teacher_blocks"
    named_blocks(f"distill.{setting} of the teacher", getattr(distill, setting), teacher.config.depth)
    distilled = teacher.config.width if distill.weight else None
    return Pretraining(mae.train(), sensors, distill, teacher, distilled, anchor)


def fit_to_teacher(
    objective: Pretraining,
    teacher: Teacher,
    data: MicroBatches,
    config: PretrainConfig,
    digests: dict[str, str],
    fabric: Fabric,
    say: Callable[[str], None],
    anew: bool,
) -> None:
    """Have the teacher answer what can be answered before training: fixed crops, and the spread of its features.

    Args:
        objective: told what the teacher says.
        say: prints a line.
        anew: whether the run starts here, and does not resume.
    """
    assert objective.distillation is not None
    if config.distill.crops:
        settings = config.to_dict()
        key = {
            "teacher": teacher.sha256,
            "stores": digests,
            "distill": {k: v for k, v in settings["distill"].items() if k != "teacher"},  # a path; its digest counts
            "data": {k: settings["data"][k] for k in ("crop", "crop_area", "flips", "statistics")},
            "seed": config.run.seed,
            "precision": config.run.precision,
        }
        folder = Path(config.run.out) / "teacher"
        data.answers = cached_teacher_features(folder, data, objective.teach, key, fabric, say)
    if config.distill.loss == "smooth-l1" and anew:
        told = []
        # All of an update's micro-batches, for the first are of its commonest sensor.
        planned = ((u, order, p) for u in range(STANDARD_BATCHES) for order, p in enumerate(data.mixture.plan(u)))
        for batch in (fabric.to_device(data.make(*each)) for each in islice(planned, STANDARD_BATCHES)):
            side = batch["image"].shape[-1] // objective.mae.patch
            told.append(batch["target"] if "target" in batch else objective.teach(batch["pictures"], side))
        shortest = min(t.shape[2] for t in told)
        objective.distillation.standardise(torch.cat([t[:, :, :shortest].float() for t in told]))


def copy_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's weights as they are now."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def find_checkpoint(config: PretrainConfig, resume: bool) -> Path | None:
    """The newest checkpoint to continue from; None to start anew.

    Args:
        resume: whether the user said so.

    Raises:
        ConfigError: the run folder holds a run and `resume` was not asked for, or its settings are others.
    """
    out = Path(config.run.out)
    found = checkpoints(out / "checkpoints")
    if not found:
        return None
    if not resume:
        raise ConfigError(
            f"{out} already holds a run ({found[-1].name}): continue it with --resume, or choose another run.out"
        )
    before = from_dict(read_run_info(found[-1])["config"], f"the configuration in {found[-1]}")
    changed = [change for change in differences(before, config) if change.split(":")[0] not in LENGTH]
    if changed:
        raise ConfigError(
            f"{out} was begun with other settings ({'; '.join(changed)}): continue with the same, or choose another "
            "run.out"
        )
    return found[-1]


def check_length(done: int, updates: int, out: Path) -> None:
    """Refuse to continue a run to an earlier end than it has reached.

    Args:
        done: updates made.
        out: folder of the run.

    Raises:
        ConfigError: more are made than the run is to have.
    """
    if done > updates:
        raise ConfigError(
            f"{out} has made {done} updates, more than the {updates} it is continued to: set run.updates above {done}, "
            "or choose another run.out"
        )


def check_stores(before: dict[str, str], now: dict[str, str]) -> None:
    """Refuse to continue on other data.

    Args:
        before: digests by sensor, as the checkpoint says.
        now: those of this start.

    Raises:
        ConfigError: a sensor came, went, or has other images, splits or statistics.
    """
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise ConfigError(
            f"the stores of {', '.join(changed)} are not those the run was begun with: give the same, or start a new "
            "run with model.init"
        )


def check_teacher(before: str | None, now: Teacher | None) -> None:
    """Refuse to continue with another teacher, whatever its name; the same one may have moved.

    Args:
        before: its digest, as the checkpoint says; None for none.

    Raises:
        ConfigError: its file has another digest.
    """
    if before is not None and now is not None and before != now.sha256:
        raise ConfigError(
            f"the teacher {now.name} is not the file the run was begun with: give the same, or start a new run with "
            "model.init"
        )


def due(update: int, every: int) -> bool:
    """Whether something done every so many updates is done now; 0 is never.

    Args:
        update: number, from 1.
    """
    return bool(every) and update % every == 0


def describe_run(sources: dict[str, Source], updates: int, per_epoch: float, done: int, fabric: Fabric) -> str:
    """What the run is about to do, in a line for each sensor.

    Args:
        per_epoch: updates of an epoch.
        done: updates made before.
    """
    lines = [
        f"{updates} updates ({updates / per_epoch:.2f} epochs) on {fabric.world_size} × {fabric.device.type}"
        + (f", continuing after {done}" if done else "")
    ]
    for name, s in sources.items():
        lines.append(
            f"  {name}: {len(s.train)} images to train on, {len(s.val)} held out, "
            f"{s.shape[0]} bands, crops of {s.side}, micro-batches of {s.batch}"
        )
        if s.scaling.constant:
            lines.append(f"  {name}: bands without variance are fed as 0: {', '.join(s.scaling.constant)}")
    return "\n".join(lines)
