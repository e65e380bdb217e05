"""Encoders whose blocks run through torch.compile: for long jobs, where the time to compile pays for itself."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from dofa.errors import ConfigError
from dofa.model.vit import VisionTransformer

Encoder = TypeVar("Encoder", bound=VisionTransformer)
Answer = TypeVar("Answer")


def compiled(model: Encoder) -> Encoder:
    """Compile the blocks of an encoder, in place: all its methods then run them compiled.

    They are compiled when they are first run, once for any number of images above one; for another number of tokens,
    for a single image, and where the outputs of other blocks are asked for, they are compiled again. The patch
    embedding stays as it is.

    Args:
        model: on the device it will run on.

    Returns:
        The same model.

    Raises:
        ConfigError: this machine cannot compile. Should it be the blocks that cannot, their first run says so.
    """
    attempt(torch.compile(torch.sin), torch.zeros(4, device=model.cls_token.device))
    blocks = torch.compile(model.through)
    compiling, known = Lock(), set[tuple[object, ...]]()

    def through(x: Tensor, wanted: Sequence[int], depth: int) -> tuple[Tensor, list[Tensor]]:
        if len(x) > 1:
            torch._dynamo.maybe_mark_dynamic(x, 0)  # the last batch of a job is smaller
        kind = (len(x) > 1, x.shape[1:], x.dtype, tuple(wanted), depth)
        with nullcontext() if kind in known else compiling:  # of threads that come at once, one compiles
            answer = attempt(blocks, x, wanted, depth)
            known.add(kind)
        return answer

    model.through = through  # type: ignore[method-assign]
    return model


def attempt(run: Callable[..., Answer], *args: object) -> Answer:
    """Run what is compiled on its first call; a compiler that fails is told in one line."""
    try:
        return run(*args)
    except TorchDynamoException as error:
        why = " ".join(str(error).strip().split("\n\n")[0].split())[:200]
        raise ConfigError(
            f"torch.compile fails on this machine ({why}): install a C++ compiler (g++), or leave out --compile"
        ) from None
