"""`dofa bench`: whole tables from one command, by one process or many on a shared folder.

From top to bottom: cells of the suite, each claimed, computed and kept as one file; passes over what others left;
the pages.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from dofa.bench.jobs import CELLS, Holder, JobStore, panels_file
from dofa.bench.report import render
from dofa.bench.suite import STATISTICS, Call, Job, Suite, load_suite, named, tuning_of
from dofa.bench.tables import published
from dofa.errors import ConfigError, DofaError, nearest
from dofa.evaluation.bootstrap import drawn_scores
from dofa.evaluation.judged_images import Panels
from dofa.evaluation.probe_result import ProbeResult
from dofa.finetuning.finetune import PANELS
from dofa.version import code_version

Rows = list[dict[str, Any]]
# What one cell may die of while the others go on: mistakes in its input, memory, a bug. Interrupts end everything.
FAILURES = (
    DofaError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class BenchResult:
    """Where the tables are and how far they have come.

    Attributes:
        page: table.html.
        counts: cells that are done, missing (their data set is not here), failed or elsewhere (being computed).
        holders: who computes those elsewhere.
    """

    page: Path
    counts: dict[str, int]
    holders: tuple[Holder, ...]

    def print(self) -> None:
        """Says it on the terminal."""
        console = Console()
        told = ", ".join(f"{count} {what}" for what, count in self.counts.items() if count)
        console.print(f"{told}; {self.page}", highlight=False, soft_wrap=True)
        if self.holders:
            who = ", ".join(sorted({f"process {h.pid} on {h.host}" for h in self.holders}))
            console.print(
                f"elsewhere: {who}; run the same command again for what they leave", highlight=False, soft_wrap=True
            )


def bench(*, suite: str, data: str, out: str, weights: Sequence[str] = (), retry: bool = False) -> BenchResult:
    """Run or resume a suite, and write its tables and pictures.

    Any number of processes, on any machines, may run the same command on one folder: each cell is computed once. A cell
    that is done is never computed again; one whose data set is missing is looked at again every time.

    Args:
        suite: quick, paper, or a YAML file (docs/bench.md).
        data: the folder that the suite's data sets lie in.
        out: the folder of cells, tables and pictures; shared where several machines work.
        weights: models to judge, each NAME=SPEC or SPEC as `dofa probe --weights` takes them.
        retry: compute failed cells again.

    Returns:
        How far it came; `print` says it.

    Raises:
        ConfigError: a suite that does not hold together, weights that cannot be opened, a folder that is not there.
        DataError: a record in `out` that cannot be read.
    """
    plan = load_suite(suite)
    cells: dict[str, Job] = {}
    for cell in plan.cells(weights):
        cells.setdefault(cell.name, cell)  # two tables may show the same one
    check_settings(cells.values())
    check_published(plan)
    check_weights(weights, plan)
    folder, target = Path(data), Path(out)
    if not folder.is_dir():
        raise ConfigError(f"--data {data}: there is no such folder; the data sets of suite {suite} lie in it")
    kept = JobStore(target / CELLS)
    console = Console(stderr=True)
    console.print(f"{plan.title}: {len(cells)} cells", highlight=False)
    if not weights:
        rows = ", ".join(plan.rows())
        console.print(f"no --weights: nothing but {rows} is judged", markup=False, highlight=False, soft_wrap=True)
    while _pass(cells, kept, folder, target, retry, console):
        retry = False  # once is enough
    page = _render_whole(plan, weights, kept, target)
    records = {name: kept.read(name) for name in cells}
    found = Counter("elsewhere" if record is None else record["status"] for record in records.values())
    busy = [holder for name, record in records.items() if record is None and (holder := kept.holder(name))]
    counts = {what: found[what] for what in ("done", "missing", "failed", "elsewhere")}
    return BenchResult(page, counts, tuple(busy))


def _pass(cells: dict[str, Job], kept: JobStore, folder: Path, target: Path, retry: bool, console: Console) -> int:
    """Compute every cell that is free; how many there were. A pass that finds none ends the work."""
    done = 0
    for number, (name, cell) in enumerate(cells.items(), 1):
        seen = kept.read(name)
        if seen is not None and not _again(seen, cell, folder, retry):
            continue
        claim = kept.claim(name)
        if claim is None:
            continue
        with claim:
            if kept.read(name) != seen:
                continue  # somebody was faster
            began = monotonic()
            record = run_job(cell, folder, target)
            kept.write(name, {**_asked(cell), **record, "seconds": round(monotonic() - began, 2)})
        done += 1
        told = f"[{number}/{len(cells)}] {cell.title}: {_told(record)}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    return done


def _again(record: dict[str, Any], cell: Job, folder: Path, retry: bool) -> bool:
    """Whether a cell with a record is worth another try."""
    if record["status"] == "missing":
        return not _absent(cell, folder)
    return retry and record["status"] == "failed"


def run_job(cell: Job, folder: Path, target: Path) -> dict[str, Any]:
    """Compute one cell.

    Args:
        target: of the bench; the feature cache and what fine-tuning writes lie in it.

    Returns:
        status `done` with rows, `missing` or `failed` with the reason; plain values.
    """
    facts = {"code": code_version()}
    spec = located(cell.spec, folder)
    try:
        if _absent(cell, folder):
            return {**facts, "status": "missing", "error": _where_to_get(spec)}
        rows, told = (_probe if cell.call == "probe" else _finetune)(cell, spec, target)
    except FAILURES as error:
        reason = " ".join(f"{'' if isinstance(error, DofaError) else type(error).__name__ + ': '}{error}".split())
        trace = "" if isinstance(error, DofaError) else traceback.format_exc()
        return {**facts, "status": "failed", "error": reason, "traceback": trace}
    return {**facts, "status": "done", "rows": rows, **told}


def _probe(cell: Job, spec: str, target: Path) -> tuple[Rows, dict[str, Any]]:
    probe = _function("probe")
    floor = cell.weights == STATISTICS
    settings = dict(cell.settings)
    weights: Any = cell.weights
    if floor:
        # The floor has no encoder: the smallest there is stands in, and only the statistics' row is kept.
        from dofa.model.checkpoint import create

        weights = create("tiny", depth=1, width=48, heads=1)
        settings |= {"blocks": ["pooled"], "stats": "dataset", "random_seeds": 1}
        settings.pop("size", None)
    if cell.fraction != 1:
        settings["fraction"] = cell.fraction
    result: ProbeResult = probe(weights, spec, seed=cell.seed, baselines=floor, cache=target / "cache", **settings)
    rows = [
        {**row.to_dict(), "drawn": drawn_scores(row.judged, cell.seed)}
        for row in result.rows
        if not floor or row.features == "band statistics"
    ]
    if result.panels is not None:
        result.panels.save(panels_file(target / CELLS, cell.name))
    return rows, {"data": result.setting["data"], "notes": list(result.warnings)}


def _finetune(cell: Job, spec: str, target: Path) -> tuple[Rows, dict[str, Any]]:
    settings = dict(cell.settings) | ({"fraction": cell.fraction} if cell.fraction != 1 else {})
    # A cell that was killed goes on from its last epoch, whoever takes it over.
    work = target / "work" / cell.name
    finetune = _function("finetune")
    result = finetune(cell.weights, spec, seed=cell.seed, out=work, cache=target / "cache", resume=True, **settings)
    found = result.to_dict()
    row = {"features": f"{found['method']}, {found['decoder']}", "classifier": "finetune", "metric": found["metric"],
           "score": found["score"], "confusion": found["confusion"], "drawn": list(result.drawn)}  # fmt: skip
    panels = Panels.load(result.folder / PANELS)
    if panels is not None:
        (answers,) = panels.answers.values()
        replace(panels, answers={row["features"]: answers}).save(panels_file(target / CELLS, cell.name))
    classes = {entry["name"]: entry["count"] for entry in found["classes"]}
    data = {"judged": found["images"], "unit": "image", "classes": classes}
    return [row], {"data": data, "notes": found["notes"], "epoch": found["epoch"]}


def check_settings(cells: Iterable[Job]) -> None:
    """Refuse keywords that the functions do not have and recipes that do not hold together, before any computing.

    Raises:
        ConfigError: the nearest keywords are named.
    """
    for cell in cells:
        known = signature(_function(cell.call)).parameters
        for key in cell.settings:
            if key not in known:
                raise ConfigError(f"{cell.title}: {cell.call} has no setting {key!r}: {nearest(key, known)}")
        if cell.call == "finetune":
            try:
                tuning_of(cell.settings)
            except ConfigError as error:
                raise ConfigError(f"{cell.title}: {error}") from None


def check_published(plan: Suite) -> None:
    """Refuse published protocols and data sets that nobody published: their rows would just be absent.

    Raises:
        ConfigError: the nearest names are named.
    """
    rows, told = published()
    columns = {name for row in rows for name in row.scores}
    words = [(f"protocols: {key}", word, told["protocols"]) for key, p in plan.protocols.items() for word in p.beside]
    words += [(f"data: {key}", d.published, columns) for key, d in plan.data.items() if d.published is not None]
    for where, word, known in words:
        if word not in known:
            raise ConfigError(f"{where}: published has no {word!r}: {nearest(word, known)}")


def check_weights(weights: Sequence[str], plan: Suite) -> None:
    """Refuse weights that cannot be opened or that no row takes, before any cell.

    Args:
        weights: given on the command line.

    Raises:
        ConfigError: which, and why.
    """
    from dofa.evaluation.backbones import open_backbone

    for name, spec in map(named, weights):
        if name in plan.unused(weights):
            raise ConfigError(f"--weights {name}=: no row of the suite takes it: {nearest(name, plan.asked)}")
        try:
            open_backbone(spec)
        except DofaError as error:
            raise ConfigError(f"--weights {name}: {error}") from None


def located(spec: str, folder: Path) -> str:
    """A data set of a suite as `open_labelled` takes it: relative paths start in the folder.

    Args:
        spec: as the suite writes it.
        folder: the one of `--data`.
    """
    from dofa.datasets.opening import KINDS

    kind, colon, rest = spec.partition(":")
    if "://" in spec:
        return spec
    return f"{kind}:{folder / rest}" if colon and kind in KINDS else str(folder / spec)


def _absent(cell: Job, folder: Path) -> bool:
    from dofa.datasets.opening import KINDS

    if "://" in cell.spec:
        return False
    spec = located(cell.spec, folder)
    kind, colon, rest = spec.partition(":")
    return not Path((rest if colon and kind in KINDS else spec).partition("#")[0]).exists()


def _where_to_get(spec: str) -> str:
    """What the reader says of a data set that is not there."""
    from dofa.datasets.opening import open_labelled

    try:
        open_labelled(spec)
    except DofaError as error:
        return " ".join(str(error).split())
    return f"{spec} is not there"


def _function(call: Call) -> Callable[..., Any]:
    room = "finetuning" if call == "finetune" else "evaluation"
    found: Callable[..., Any] = getattr(import_module(f"dofa.{room}.{call}"), call)
    return found


def _asked(cell: Job) -> dict[str, Any]:
    keys = ("call", "weights", "identity", "spec", "settings", "fraction", "seed")
    return {"asked": {key: getattr(cell, key) for key in keys}}


def _told(record: dict[str, Any]) -> str:
    if record["status"] != "done":
        return f"{record['status']}: {record['error']}"
    best = max(record["rows"], key=lambda row: row["score"]["value"])
    return f"{best['metric']} {100 * best['score']['value']:.1f} %"


def _render_whole(plan: Suite, weights: Sequence[str], kept: JobStore, target: Path) -> Path:
    """Pages of all that is there; again, if another process finished a cell meanwhile: its page may have been ours."""
    while True:
        records = {cell.name: kept.read(cell.name) for cell in plan.cells(weights)}
        page = render(plan, weights, records, target)
        if records == {name: kept.read(name) for name in records}:
            return page
