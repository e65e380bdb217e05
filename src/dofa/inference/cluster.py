"""Scenes on several processes or machines through Dask `distributed`.

A task is one batch: the tiles that `engine.run` gives the model at once, the same ones in the same order, so that a
cluster's blocks are one process's to the last bit where the same number of threads computes them. Workers open the
scenes themselves, at the paths they have here, and are sent the model once; what comes back are answers, which are
joined and written by the process that asked. What a lost worker had is done again by another.
"""

import copy
import logging
import os
import pickle
import threading
import time
import uuid
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import Future as Promise
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import dofa
from dofa.addresses import redact
from dofa.errors import ConfigError, DataError, DofaError
from dofa.inference import engine
from dofa.inference.engine import Block, Item, Job, TileAccumulator
from dofa.inference.inputs import Inputs
from dofa.inference.workers import TileModel, WorkerThreads, in_bf16, run_model
from dofa.model.compiled import compiled
from dofa.model.devices import choose_device
from dofa.model.vit import VisionTransformer
from dofa.options import Precision
from dofa.pixels import Float
from dofa.scene.grid import Window

AHEAD = 3  # batches a worker: one that is run, one that is read, one whose answer is fetched
SCENES = 4  # that a worker keeps open
CONNECT_S = 20.0
ALONE_S = 300.0  # that a run waits while the cluster has no worker


def run(
    jobs: Sequence[Job], *, cluster: str | None = None, compile: bool = False, **settings: Any
) -> Generator[Block, None, None]:
    """Every block of every job that is not finished yet, in order: `engine.run`, or `run_on_cluster` where one is told.

    Args:
        jobs: scenes with their plans.
        cluster: see `run_on_cluster`; None for this process.
        compile: whether workers compile the model; here it is compiled, or not, before it becomes part of a job.
    """
    if cluster is None:
        return engine.run(jobs, **settings)
    return run_on_cluster(jobs, cluster, compile=compile, **settings)


def run_on_cluster(
    jobs: Sequence[Job],
    cluster: str,
    *,
    batch: int = 16,
    precision: Precision = "auto",
    device: str | None = None,
    compile: bool = False,
    progress: Callable[[int, int], None] = lambda tiles, read: None,
) -> Generator[Block, None, None]:
    """Like `engine.run`, on the workers of a cluster.

    Args:
        jobs: scenes with their plans; the workers find the files of their recipes at the same paths.
        cluster: a scheduler's address (`tcp://HOST:8786`), or `local:N` for N processes on this machine, which share
            its cores. Elsewhere a worker computes with as many threads as it has (`dask worker --nthreads`).
        batch: tiles the model takes at once.
        precision: as for `engine.run`; `auto` is bf16 where this process or the first worker multiplies it fast.
        device: of the model on the workers.
        compile: run the encoders through torch.compile there.
        progress: called with tiles done and bytes of pixels they cover.

    Yields:
        Blocks: the same as those of `engine.run` with the same settings and number of threads.

    Raises:
        ConfigError: an address that is none, `distributed` is missing, or workers with another version.
        DataError: as `engine.run`; files that a worker does not find, or finds changed.
        DofaError: the scheduler is not reached or lost, it has no workers, or they die again and again.
    """
    with _connected(cluster) as (client, threads), ThreadPoolExecutor(1, "dofa-join") as joiner:
        crew = _WorkerPool(client, cluster)
        how = _RunSettings(device, precision, compile, threads, _versions())
        joint, todo = TileAccumulator(jobs), engine.batches(jobs, batch)
        models: dict[int, Any] = {}
        scenes: dict[int, bytes] = {}
        waiting: deque[tuple[list[Item], Any]] = deque()
        joined: deque[Promise[list[Block]]] = deque()
        try:
            while True:
                while len(waiting) < AHEAD * crew.size and (items := next(todo, None)) is not None:
                    model = jobs[items[0].job].model
                    if id(model) not in models:
                        models[id(model)] = _send(client, model, how)
                    numbers = sorted({item.job for item in items})
                    for number in numbers:
                        if number not in scenes:
                            scenes[number] = _recipe(jobs[number].inputs)
                    tiles = [(numbers.index(item.job), item.tile.window) for item in items]
                    sent = [scenes[number] for number in numbers]
                    future = client.submit(_work, models[id(model)], sent, tiles, how, key=_key("tiles"))
                    waiting.append((items, future))
                if not waiting:
                    break
                items, future = waiting.popleft()
                try:
                    answers = crew.result(future)
                except engine.SceneError as error:  # a worker counts the scenes of its batch
                    raise engine.SceneError(str(error), sorted({item.job for item in items})[error.job]) from None
                joined.append(joiner.submit(joint.add, items, answers))
                progress(len(items), engine.nbytes(jobs, items))
                while joined and (joined[0].done() or len(joined) > 2):
                    yield from joined.popleft().result()
            while joined:
                yield from joined.popleft().result()
        finally:
            for _, future in waiting:
                future.release()


# -- here -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RunSettings:
    """What all tasks of a run share.

    Attributes:
        device: of the model; None for the worker's best.
        precision: of the run.
        compile: whether encoders are compiled.
        threads: that compute; None for as many as the worker has.
        versions: that must be those here.
    """

    device: str | None
    precision: Precision
    compile: bool
    threads: int | None
    versions: tuple[str, str]


class _WorkerPool:
    """The workers, as this process sees them."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name
        self._count, self._counted_at = 0, -60.0

    @property
    def size(self) -> int:
        """Workers, at least one."""
        if time.monotonic() - self._counted_at > 2:
            try:
                self._count = len(self._client.nthreads())
            except (OSError, RuntimeError):
                raise self._lost() from None
            self._counted_at = time.monotonic()
        return max(self._count, 1)

    def result(self, future: Any) -> list[Float | None]:
        """The answers of a task, however long they take while there are workers."""
        from distributed import KilledWorker

        alone = time.monotonic()
        while True:
            try:
                return list(future.result(timeout=5))
            except TimeoutError:
                if future.status == "error":
                    raise
                if self.size and self._count:
                    alone = time.monotonic()
                if time.monotonic() - alone > ALONE_S:
                    raise DofaError(
                        f"--cluster {self._name} has had no worker for {ALONE_S:.0f} s: start some (dask worker) and "
                        "run the same command again, it goes on from here"
                    ) from None
            except CancelledError:
                raise self._lost() from None
            except KilledWorker as error:
                raise DofaError(
                    f"--cluster {self._name}: one batch after another ended its worker, the last one "
                    f"{error.last_worker.address}: look at its log, give workers more memory, or a smaller --batch"
                ) from None

    def _lost(self) -> DofaError:
        return DofaError(
            f"--cluster {self._name}: the scheduler is lost: start it again and run the same command, it goes on from "
            "here"
        )


@contextmanager
def _connected(cluster: str) -> Iterator[tuple[Any, int | None]]:
    """A client of the cluster, and the threads of a worker where they are ours to say."""
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError:
        raise ConfigError('--cluster needs Dask: pip install "dofa[cluster]"') from None
    kind, _, rest = cluster.partition(":")
    if kind == "local" and rest.isdecimal() and int(rest) > 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Two tasks at a time: one reads while the other computes. What memory they take is bounded without a limit.
        with (
            LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=int(rest),
                threads_per_worker=2,
                processes=True,
                host="127.0.0.1",
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as local,
            Client(local, set_as_default=False) as client,  # type: ignore[no-untyped-call]
        ):
            yield client, max(1, cores // int(rest))
        return
    if "://" not in cluster or "@" in cluster:
        raise ConfigError(f"--cluster {redact(cluster)}: a scheduler's address such as tcp://HOST:8786, or local:4")
    with _silenced():
        try:
            client = Client(cluster, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise DofaError(
                f"--cluster {cluster}: no scheduler answers ({' '.join(str(error).split())[:120]}): start one "
                "(dask scheduler), or look at the address"
            ) from None
        with client:
            yield client, None


@contextmanager
def _silenced() -> Iterator[None]:
    """Without the tracebacks that Dask prints of lost connections: what they mean is told in one line."""
    handlers = [(handler, handler.level) for handler in logging.getLogger("distributed").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)


def _send(client: Any, model: TileModel, how: _RunSettings) -> Any:
    """The model as a task of its own: the scheduler has it made again where all workers that held it were lost."""
    if isinstance(model, torch.nn.Module) and any(p.device.type != "cpu" for p in model.parameters()):
        model = copy.deepcopy(model).cpu()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")  # it is sent once
        return client.submit(_load, pickle.dumps(model, pickle.HIGHEST_PROTOCOL), how, key=_key("model"))


def _recipe(inputs: Inputs) -> bytes:
    """What a worker opens the scene from."""
    return pickle.dumps((type(inputs), inputs.scene.recipe, inputs.scene.fingerprint, inputs.scalings))


def _key(what: str) -> str:
    return f"dofa-{what}-{uuid.uuid4().hex}"


def _versions() -> tuple[str, str]:
    return dofa.__version__, torch.__version__


# -- on a worker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """A model as it lies in a worker's memory.

    Attributes:
        key: of the one that was sent.
        tiles: on the CPU.
        low: whether it is run in bf16.
    """

    key: str
    tiles: TileModel
    low: bool


class _WorkerCache:
    """What a worker process keeps from task to task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scenes: OrderedDict[bytes, Inputs] = OrderedDict()
        self._model: tuple[str, TileModel] | None = None
        self._streams: dict[tuple[torch.device, int], WorkerThreads] = {}

    def inputs(self, recipe: bytes, number: int) -> Inputs:
        """An open scene; `number` tells it from the others of its batch where it cannot be opened."""
        with self._lock:
            if recipe not in self._scenes:
                try:
                    self._scenes[recipe] = _open(recipe)
                except DataError as error:
                    raise engine.SceneError(str(error), number) from None
            self._scenes.move_to_end(recipe)
            if len(self._scenes) > SCENES:
                self._scenes.popitem(last=False)  # closed when the last task lets go of it
            return self._scenes[recipe]

    def answer(self, model: _Model, images: Float, seen: Sequence[bool], how: _RunSettings) -> list[Float | None]:
        """As many batches at a time as `engine.run` computes here, however many tasks the worker runs."""
        from distributed import get_worker

        worker = get_worker()
        device, threads = _device(how.device, worker.name), how.threads or worker.state.nthreads
        with self._lock:
            if (device, threads) not in self._streams:
                self._streams[device, threads] = WorkerThreads(device, threads)
            streams, tiles = self._streams[device, threads], self._held(model, device, how)
        return streams.submit(run_model, tiles, images, seen, device, model.low).result()

    def _held(self, model: _Model, device: torch.device, how: _RunSettings) -> TileModel:
        """The model on the device it runs on."""
        if self._model is None or self._model[0] != model.key:
            tiles = model.tiles
            if isinstance(tiles, torch.nn.Module):
                tiles = (tiles if device.type == "cpu" else copy.deepcopy(tiles)).to(device)
                for module in list(tiles.modules()) if how.compile else ():
                    if isinstance(module, VisionTransformer):
                        compiled(module)
            self._model = model.key, tiles
        return self._model[1]


_here = _WorkerCache()


def _load(payload: bytes, how: _RunSettings) -> _Model:
    """A model, in the memory of the worker this runs on; Dask brings it to the others."""
    _check(how)
    device = _device(how.device, None)
    tiles = pickle.loads(payload)
    # Matrices that were brought to bf16 where this run began are run in it, whatever this machine would choose.
    made_low = isinstance(tiles, torch.nn.Module) and any(p.dtype == torch.bfloat16 for p in tiles.parameters())
    return _Model(_key("held"), tiles, made_low or in_bf16(how.precision, device))


def _work(
    model: _Model, recipes: Sequence[bytes], tiles: Sequence[tuple[int, Window]], how: _RunSettings
) -> list[Float | None]:
    """The answers of one batch."""
    _check(how)
    scenes = [_here.inputs(recipe, number) for number, recipe in enumerate(recipes)]
    first, window = tiles[0]
    images = np.empty((len(tiles), scenes[first].count, window.height, window.width), np.float32)
    pairs = zip(tiles, images, strict=True)
    seen = [engine.read(scenes[number], window, image, number) for (number, window), image in pairs]
    return _here.answer(model, images, seen, how)


def _check(how: _RunSettings) -> None:
    if how.versions != _versions():
        (theirs, torches), (ours, torch_here) = _versions(), how.versions
        raise ConfigError(
            f"{_worker()} has dofa {theirs} with torch {torches}, this process {ours} with {torch_here}: install the "
            "same on all of them"
        )


def _open(recipe: bytes) -> Inputs:
    from dofa.scene.scene import open_recipe

    kind, words, fingerprint, scalings = pickle.loads(recipe)
    cure = "workers need the same files at the same paths"
    try:
        scene = open_recipe(words)
    except DataError as error:
        raise DataError(f"{_worker()}: {error}; {cure}") from None
    if scene.fingerprint != fingerprint:
        raise DataError(f"{_worker()} finds other files of {words['name']} than this process (size, time): {cure}")
    opened: Inputs = kind(scene, scalings)
    return opened


def _worker() -> str:
    from distributed import get_worker

    return f"worker {get_worker().address}"


def _device(wanted: str | None, name: Any) -> torch.device:
    """The device of a worker; the numbered workers of one machine share its GPUs evenly."""
    if wanted is None and torch.cuda.is_available():
        return torch.device("cuda", name % torch.cuda.device_count() if isinstance(name, int) else 0)
    return choose_device(wanted or "cpu")
