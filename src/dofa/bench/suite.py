"""What a bench runs: models × data sets × protocols × seeds, read from YAML and spelled out as cells.

A cell is one call of `probe` or `finetune`. Its name is a digest of everything that decides its result, so the same
cell of two suites, two machines or two days is one file. Nothing here imports torch.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from dofa.datasets.labelled import digest
from dofa.documents import LARGEST_YAML, parse_yaml, read_bytes
from dofa.errors import ConfigError, nearest, shorten
from dofa.finetuning.settings import FinetuneConfig, resolve_settings
from dofa.settings import check_keys, check_types, field_names

Call = Literal["probe", "finetune"]
CALLS: tuple[Call, ...] = get_args(Call)
STATISTICS = "statistics"  # weights of the model that is none: mean and spread of every band
GIVEN, NAME, SEED = "{weights}", "{name}", "{seed}"
CELL_FORMAT = 1
OWN = frozenset({"weights", "data", "seed", "out", "cache", "baselines", "random_seeds"})  # what a bench decides itself


@dataclass(frozen=True)
class Model:
    """A row of the tables.

    Attributes:
        weights: what `probe --weights` takes, `{weights}` for each of the weights given on the command line, or
            `statistics`; `{NAME}` is what the command line gives as `NAME=SPEC`, and where it gives none the row is
            left out; `{seed}` becomes the seed.
        probe: keywords for `probe` with this model.
        finetune: keywords for `finetune` with this model.
        on: keywords of this model for single data sets, by name; they win over all others.
    """

    weights: str
    probe: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    on: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A column of the tables.

    Attributes:
        data: what `probe --data` takes; a relative path starts in the folder `bench --data` names.
        published: the name of the data set among the published results.
        probe: keywords for `probe` on it.
        finetune: keywords for `finetune` on it.
        note: what a reader of its numbers should know.
    """

    data: str
    published: str | None = None
    probe: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """A table.

    Attributes:
        call: probe or finetune.
        settings: its keywords; those of the data set win, those of the model over both.
        fractions: shares of the training labels, a cell each.
        seeds: of its cells, or of the models named; the suite's where absent.
        classifier: of a probe's two, the one this table shows.
        models: names of those it is for; all where absent.
        data: names of the data sets it is for; all where absent.
        published: which published protocols its numbers stand beside, one or several.
        note: told under the table.
    """

    call: Call
    settings: dict[str, Any] = field(default_factory=dict)
    fractions: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] | dict[str, list[int]] | None = None
    classifier: Literal["linear", "k-NN"] = "linear"
    models: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    published: str | tuple[str, ...] = ()
    note: str = ""

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the published protocols."""
        return (self.published,) if isinstance(self.published, str) else self.published


@dataclass(frozen=True)
class Job:
    """One call, and where its result stands in the tables.

    Attributes:
        model: name of its row.
        data: name of its column.
        protocol: name of its table.
        fraction: share of the training labels.
        seed: of everything that is drawn.
        call: the function.
        weights: as that function takes them.
        spec: the data set as the suite names it.
        settings: the function's other keywords.
        identity: of the weights' content.
    """

    model: str
    data: str
    protocol: str
    fraction: float
    seed: int
    call: Call
    weights: str
    spec: str
    settings: dict[str, Any]
    identity: str

    @cached_property
    def name(self) -> str:
        """Of its files: the same wherever the same thing is asked for."""
        asked = [CELL_FORMAT, self.call, self.identity, self.spec, self.settings, self.fraction, self.seed]
        return digest(asked)[:24]

    @property
    def title(self) -> str:
        """For a person."""
        share = "" if self.fraction == 1 else f", {self.fraction:g} of the labels"
        return f"{self.model} · {self.data} · {self.protocol}{share} · seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    """Models, data sets and protocols, each by name in the order of the tables.

    Attributes:
        title: of the page.
        models: rows.
        data: columns.
        protocols: tables.
        seeds: of the cells.
        note: above the tables.
    """

    title: str
    models: dict[str, Model]
    data: dict[str, DataSet]
    protocols: dict[str, Protocol]
    seeds: tuple[int, ...] = (0,)
    note: str = ""

    def cells(self, weights: Sequence[str] = ()) -> list[Job]:
        """Every cell, in the order of the suite; two tables may show the same one.

        Args:
            weights: given on the command line, each `NAME=SPEC` or a spec named after its folder.

        Raises:
            ConfigError: nothing to run, or two models (or data sets) that ask for the same thing.
        """
        cells = [cell for name, protocol in self.protocols.items() for cell in self._of(name, protocol, weights)]
        if not cells:
            raise ConfigError(
                "the suite has no cell to run: its models stand for weights of yours, pass --weights NAME=FOLDER"
            )
        known: dict[str, Job] = {}
        for cell in cells:
            if (same := known.setdefault(cell.name, cell)).model != cell.model or same.data != cell.data:
                raise ConfigError(f"{cell.title} is the same as {same.title}: leave one of them out")
        return cells

    def rows(self, weights: Sequence[str] = ()) -> list[str]:
        """Names of the models, those that stand for weights given once for each."""
        return [row for _, row, _ in self._models(weights)]

    @cached_property
    def asked(self) -> list[str]:
        """Names of the weights that rows of their own stand for."""
        return list(dict.fromkeys(name for model in self.models.values() for name in _asked_for(model)))

    def unused(self, weights: Sequence[str]) -> list[str]:
        """Names of weights that no row takes.

        Args:
            weights: as for `cells`.
        """
        takes_all = any(GIVEN in model.weights for model in self.models.values())
        return [name for name, _ in map(named, weights) if not takes_all and name not in self.asked]

    def _models(self, weights: Sequence[str]) -> Iterator[tuple[str, str, Model]]:
        """Key, row and weights: a row of its own takes its name out of those that `{weights}` stands for."""
        given = dict(pairs := [named(word) for word in weights])
        if len(given) < len(pairs):
            raise ConfigError("two of the weights have the same name: call them NAME=FOLDER")
        for key, model in self.models.items():
            if names := _asked_for(model):
                if all(name in given for name in names):
                    spec = model.weights
                    for name in names:
                        spec = spec.replace(f"{{{name}}}", given[name])
                    yield key, key, replace(model, weights=spec)
            elif GIVEN not in model.weights:
                yield key, key, model
            else:
                for name, spec in given.items():
                    if name not in self.asked:
                        yield key, key.replace(NAME, name), replace(model, weights=model.weights.replace(GIVEN, spec))

    def _of(self, title: str, protocol: Protocol, weights: Sequence[str]) -> Iterator[Job]:
        wanted = None if protocol.models is None else {*protocol.models}
        for column, data in self.data.items():
            if protocol.data is not None and column not in protocol.data:
                continue
            for key, row, model in self._models(weights):
                if (wanted is not None and key not in wanted) or (
                    model.weights == STATISTICS and protocol.call != "probe"
                ):
                    continue
                settings = {**protocol.settings, **getattr(data, protocol.call), **getattr(model, protocol.call)}
                settings |= model.on.get(column, {})
                if "recipe" in settings and Path(str(settings["recipe"])).is_file():
                    settings = plain_settings(settings)  # by content: the file may change, and with it the cell's name
                for fraction in protocol.fractions:
                    for seed in self._seeds(protocol, key):
                        spec = model.weights.replace(SEED, str(seed))
                        yield Job(
                            row, column, title, fraction, seed, protocol.call, spec, data.data, settings, identity(spec)
                        )

    def _seeds(self, protocol: Protocol, model: str) -> Sequence[int]:
        own = protocol.seeds.get(model) if isinstance(protocol.seeds, dict) else protocol.seeds
        return self.seeds if own is None else own


def _asked_for(model: Model) -> list[str]:
    """Names of the weights that a row of its own stands for."""
    return [name for name in re.findall(r"\{(\w+)\}", model.weights) if f"{{{name}}}" not in (GIVEN, SEED)]


def tuning_of(settings: Mapping[str, Any]) -> FinetuneConfig:
    """What the keywords of a `finetune` come to: its recipe with what is said over it.

    Raises:
        ConfigError: no such recipe, or values that do not hold together.
    """
    known = {f.name for f in fields(FinetuneConfig)}
    return resolve_settings(settings.get("recipe"), {key: value for key, value in settings.items() if key in known})


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a `finetune` with the recipe's own numbers in place of the recipe.

    Raises:
        ConfigError: as `tuning_of`; or the recipe takes a share of the labels, which a protocol decides.
    """
    found = tuning_of(settings).to_dict()
    if found.pop("fraction") != 1:
        raise ConfigError(f"recipe {settings['recipe']}: leave fraction out, a protocol names its fractions")
    rest = {key: value for key, value in settings.items() if key != "recipe" and key not in found}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()} | rest


def named(word: str) -> tuple[str, str]:
    """Name and spec of weights as a person writes them: `NAME=SPEC`, or a spec named after its last folder."""
    name, equals, spec = word.partition("=")
    if equals and name and spec:
        return name, spec
    path = Path(word.partition(":")[2].partition("#")[0] or word)
    name = path.parent.name if path.name == "model" and path.parent.name else path.name  # runs/mine/model is "mine"
    return name, word


def identity(weights: str) -> str:
    """What tells weights apart: their content where they lie here, the word itself where they do not."""
    kind, colon, rest = weights.rpartition(":")
    place, hash_mark, seed = rest.partition("#")
    path = Path(place)
    return f"{kind}{colon}{_content(path) if path.exists() else place}{hash_mark}{seed}"


@lru_cache
def _content(path: Path) -> str:
    files = [f for f in (path / "config.json", path / "model.safetensors") if f.is_file()] if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(
        f.name.removesuffix(".yaml") for f in (resources.files("dofa") / "suites").iterdir() if f.name.endswith(".yaml")
    )


def load_suite(name: str | Path) -> Suite:
    """A suite from a YAML file, or from one of the package's by its name.

    Raises:
        ConfigError: no such file or suite, not YAML, or an entry that is not known; it is named.
    """
    file = Path(name)
    if file.is_file():
        text: str | bytes = read_bytes(file, ConfigError, LARGEST_YAML)
    elif str(name) in suites():
        text = (resources.files("dofa") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise ConfigError(f"no file and no suite {str(name)!r}: {nearest(str(name), suites())}")
    return _suite(parse_yaml(text, str(name)), str(name))


def _suite(told: Any, origin: str) -> Suite:
    told = check_keys(told, field_names(Suite), origin, ("models", "data", "protocols"))
    parts: dict[str, dict[str, Any]] = {}
    for key, owner in (("models", Model), ("data", DataSet), ("protocols", Protocol)):
        entries = told.get(key)
        if not isinstance(entries, Mapping) or not entries:
            raise ConfigError(f"{origin}: {key} is to name at least one")
        parts[key] = {
            name: _entry(owner, entry, f"{origin}: {key}: {shorten(name)}") for name, entry in entries.items()
        }
    for name, protocol in parts["protocols"].items():
        _check(name, protocol, parts, origin)
    for name, model in parts["models"].items():
        for wanted, settings in model.on.items():
            if wanted not in parts["data"]:
                raise ConfigError(
                    f"{origin}: models: {name}: on: no data set {shorten(wanted)!r}: {nearest(wanted, parts['data'])}"
                )
            _own(settings, f"{origin}: models: {name}: on: {wanted}")
    for key in ("models", "data"):
        for name, entry in parts[key].items():
            for call in CALLS:
                _own(getattr(entry, call), f"{origin}: {key}: {name}: {call}")
    seeds = _seeds(told.get("seeds", [0]), origin)
    suite = Suite(told.get("title", origin), **parts, seeds=seeds, note=told.get("note", ""))
    check_types(suite, f"{origin}: ")
    return suite


def _entry(owner: type, told: Any, where: str) -> Any:
    """A model, data set or protocol of a suite."""
    names = field_names(owner)
    check_keys(told, names, where, names[:1])
    entry = owner(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})
    check_types(entry, f"{where}: ", skip=("call", "classifier", "seeds"))  # told by name, with the cure
    return entry


def _seeds(told: Any, where: str) -> tuple[int, ...]:
    if (
        not isinstance(told, list | tuple)
        or not told
        or any(type(seed) is not int or not 0 <= seed < 2**32 for seed in told)
    ):
        raise ConfigError(f"{where}: seeds is {shorten(repr(told))}; a list of whole numbers from 0")
    return tuple(told)


def _check(name: str, protocol: Protocol, parts: dict[str, dict[str, Any]], origin: str) -> None:
    where = f"{origin}: protocols: {name}"
    if protocol.call not in CALLS:
        raise ConfigError(f"{where}: call is {shorten(repr(protocol.call))}; probe or finetune")
    if protocol.classifier not in ("linear", "k-NN"):
        raise ConfigError(f"{where}: classifier is {shorten(repr(protocol.classifier))}; linear or k-NN")
    for key in ("models", "data"):
        for wanted in getattr(protocol, key) or ():
            if wanted not in parts[key]:
                raise ConfigError(f"{where}: {key} has no {shorten(wanted)!r}: {nearest(wanted, parts[key])}")
    if not protocol.fractions or not all(0 < fraction <= 1 for fraction in protocol.fractions):
        raise ConfigError(f"{where}: fractions are shares of the training labels, above 0 and up to 1")
    if isinstance(protocol.seeds, dict):
        for wanted, seeds in protocol.seeds.items():
            if wanted not in parts["models"]:
                raise ConfigError(f"{where}: seeds: no model {wanted!r}: {nearest(str(wanted), parts['models'])}")
            _seeds(seeds, f"{where}: {wanted}")
    elif protocol.seeds is not None:
        _seeds(protocol.seeds, where)
    _own(protocol.settings, where)


def _own(settings: Any, where: str) -> None:
    if not isinstance(settings, dict):
        raise ConfigError(f"{where}: settings are keywords and their values")
    if taken := sorted({*settings} & (OWN | {"fraction"})):
        raise ConfigError(f"{where}: {', '.join(taken)} cannot be set here: the bench decides it for every cell")
    try:
        json.dumps(settings)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: settings are plain numbers, words and lists; quote dates and the like") from None
