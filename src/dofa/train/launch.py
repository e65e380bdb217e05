"""Where a run computes: devices, precision, and how several processes share the work."""

import os
import sys

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from dofa.train.config import RunConfig
from dofa.train.objective import Pretraining


def launch(run: RunConfig) -> Fabric:
    """Devices, precision and strategy; under torchrun its numbers of processes and nodes hold."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", run.devices))
    world = int(os.environ.get("WORLD_SIZE", local * run.nodes))
    strategy: Strategy | str = "auto"
    if run.strategy == "fully-shard":
        strategy = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
    elif run.strategy == "ddp" or world > 1:
        strategy = DDPStrategy()
    fabric = Fabric(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "cuda"}[run.device],
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision=run.precision,
    )
    fabric.launch()
    return fabric


def leave() -> None:
    """End a process of several that is done, past the interpreter's own ending; nothing where there is one.

    A thread of gloo may let go of its last tensor while the interpreter ends: that aborts the process, which torchrun
    takes for a failure of the run. `destroy_process_group` does not end these threads, for caches of DTensor hold them.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard parameters over the processes, block by block: each gathers one block at a time.

    Args:
        module: the objective, or a part of it; parts are left whole.
    """
    if not isinstance(module, Pretraining):
        raise TypeError(f"cannot shard {type(module).__name__}")
    for block in (*module.mae.encoder.blocks, *module.mae.decoder_blocks):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])
    return module
