"""Training state on disk: written whole or not at all, and read back to the bit.

A checkpoint is a folder update-00000100/ with model.safetensors, optimizer.safetensors and state.json. It is written
under a temporary name beside it, flushed to the disk, and renamed: whoever kills the process leaves either the new
checkpoint or the old ones. There is no random state in it because there is none to keep: every draw is a function of
the seed and the update, which state.json holds (docs/architecture.md, Randomness).
"""

import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

import dofa
from dofa.addresses import redact_values
from dofa.documents import read_json
from dofa.errors import CheckpointError, ConfigError, DofaError
from dofa.io import FileLock
from dofa.settings import check_version

FORMAT_VERSION = 1
LOCK_PATIENCE_S = 15.0
_PREFIX = "update-"
_PARTIAL = ".partial-"


class ContinuationWarning(UserWarning):
    """The continuation is valid but not bit-identical: threads, device or libraries differ."""


def save_state(
    folder: Path,
    update: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: dict[str, Any],
    *,
    keep: int,
    write: bool,
) -> None:
    """Write the checkpoint of an update and remove the oldest ones.

    Every process must call it, for sharded tensors are gathered; one of them writes.

    Args:
        update: number of updates done.
        module: whose parameters and buffers are kept.
        optimizer: over parameters of `module`.
        keep: newest checkpoints that stay.
        write: whether this process writes.

    Raises:
        DofaError: the disk is full, or the folder is gone.
    """
    tensors = {name: _whole(value) for name, value in module.state_dict().items()}
    slots = {
        f"{name}:{slot}": _whole(value)
        for name, parameter in module.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
    target = folder / f"{_PREFIX}{update:08d}"
    if not write or target.is_dir():
        return
    partial = folder / f"{_PARTIAL}{target.name}"
    try:
        folder.mkdir(exist_ok=True)  # not its parents: a run folder that was removed is not made again without its log
        remove_partial(folder)
        partial.mkdir()
        safetensors.torch.save_file(tensors, partial / "model.safetensors")
        safetensors.torch.save_file(slots, partial / "optimizer.safetensors")
        state = {"format_version": FORMAT_VERSION, "update": update, "surroundings": environment(), **facts}
        (partial / "state.json").write_text(json.dumps(redact_values(state), indent=1), encoding="utf-8")
        for file in partial.iterdir():
            _flush(file)
        _flush(partial)
        os.replace(partial, target)
        _flush(folder)
    except (OSError, safetensors.SafetensorError) as error:  # safetensors tells a full disk in its own kind
        shutil.rmtree(partial, ignore_errors=True)
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DofaError(
            f"{target} cannot be written ({why}): the checkpoints before it are whole; make room, or bring the folder "
            "back, and continue with --resume"
        ) from None
    for old in checkpoints(folder)[:-keep]:
        # Renamed first: a checkpoint that is half removed must not look whole.
        doomed = old.with_name(f"{_PARTIAL}{old.name}")
        os.replace(old, doomed)
        shutil.rmtree(doomed)


@contextmanager
def lock_run(fabric: Fabric, folder: Path) -> Iterator[None]:
    """Keep every other run out of a run folder; the system lets go when the process ends, however it ends.

    A killed torchrun may leave its workers running for a while: they must not write beside those of the next start.

    Args:
        fabric: of the run; its first process holds the folder.

    Raises:
        ConfigError: another run holds the folder; on all processes alike.
    """
    with ExitStack() as held:
        free, who = True, "wait for it, end it"
        if fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            held.callback(lock.release)
            free = _acquire(lock)
            who = lock.holder or who
        if not fabric.broadcast(free):
            raise ConfigError(f"another process is training in {folder}: {who}, or choose another run.out")
        yield


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*")) if folder.is_dir() else []


def remove_partial(folder: Path) -> None:
    """Remove what a killed process left unfinished."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial)


def read_run_info(checkpoint: Path) -> dict[str, Any]:
    """The contents of a checkpoint's state.json.

    Raises:
        CheckpointError: missing, unreadable, or of a format version from the future.
    """
    try:
        facts = read_json(checkpoint / "state.json", CheckpointError)
        version = facts["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} is not a training checkpoint: {error}") from None
    check_version(version, FORMAT_VERSION, f"checkpoint {checkpoint}", CheckpointError)
    return dict(facts)


def load_state(checkpoint: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's tensors into a module and an optimiser; every process reads.

    Args:
        checkpoint: folder of the checkpoint.
        module: filled in place.
        optimizer: filled in place.

    Returns:
        its `read_run_info`.

    Raises:
        CheckpointError: keys or shapes that do not fit, or see `read_run_info`.
    """
    facts = read_run_info(checkpoint)
    own = module.state_dict()
    tensors = _read(checkpoint / "model.safetensors", own.keys())
    with torch.no_grad():
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{checkpoint}: {name} has shape {tuple(tensors[name].shape)}, the model has {tuple(value.shape)}"
                )
            value.copy_(_like(tensors[name], value))
    names = {
        parameter: name
        for name, parameter in module.named_parameters()
        if any(parameter is p for group in optimizer.param_groups for p in group["params"])
    }
    expected = [f"{name}:{slot}" for name in names.values() for slot in ("step", "exp_avg", "exp_avg_sq")]
    slots = _read(checkpoint / "optimizer.safetensors", expected)
    for parameter, name in names.items():
        optimizer.state[parameter] = {
            "step": slots[f"{name}:step"].to(parameter.device),
            "exp_avg": _like(slots[f"{name}:exp_avg"], parameter),
            "exp_avg_sq": _like(slots[f"{name}:exp_avg_sq"], parameter),
        }
    now = environment()
    before = facts.get("surroundings", {})
    changed = [f"{k} {before.get(k)} -> {now[k]}" for k in now if before.get(k) != now[k]]
    if changed:
        warnings.warn(
            f"continuing from {checkpoint.name}, but not to the same bits as without the interruption: "
            + ", ".join(changed),
            ContinuationWarning,
            stacklevel=2,
        )
    return facts


def environment() -> dict[str, Any]:
    """What bit-equality depends on: threads, processes, device kind and library versions."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if distributed else 1,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dofa": dofa.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _acquire(lock: FileLock) -> bool:
    """Whether a lock was free within a few seconds: loader workers notice their parent's death that late."""
    patience = time.monotonic() + LOCK_PATIENCE_S
    while not lock.acquire():
        if time.monotonic() > patience:
            return False
        time.sleep(0.2)
    return True


def _read(file: Path, expected: Any) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from None
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise CheckpointError(f"{file} does not fit: missing {missing[:3] or 'none'}, unknown {extra[:3] or 'none'}")
    return tensors


def _whole(value: Tensor) -> Tensor:
    """The full tensor on the CPU, gathered where it is sharded."""
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().cpu().contiguous()


def _like(full: Tensor, template: Tensor) -> Tensor:
    """A full tensor on the device, and in the shards, of another."""
    full = full.to(template.device)
    if isinstance(template, DTensor):
        return distribute_tensor(full, template.device_mesh, template.placements)
    return full


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
