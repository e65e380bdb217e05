"""Where a model runs."""

import torch

from dofa.errors import ConfigError


def choose_device(device: str | None) -> torch.device:
    """The device that is told, or this machine's best.

    Raises:
        ConfigError: a device that this machine or this build of PyTorch has not.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # asserted where PyTorch was built without CUDA
        why = str(error).strip().splitlines()[0][:120]
        raise ConfigError(f"device {device}: {why}: leave it out, or name cpu, cuda or cuda:1") from None
    return found
