"""Configurations as YAML: a file or a recipe that comes with the package, settings that win over it, differences."""

import types
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from dofa.addresses import redact_values
from dofa.documents import LARGEST_YAML, as_mapping, parse_yaml, read_bytes
from dofa.errors import ConfigError, nearest, shorten
from dofa.train.config import FORMAT_VERSION, PretrainConfig

# What may differ between a run and its continuation without changing a single weight.
HOUSEKEEPING = frozenset(
    {
        "data.stores",  # compared by content, so a moved corpus continues
        "run.out",
        "run.workers",
        "run.save_every",
        "run.keep",
        "run.log_every",
        "run.evaluate_every",
        "run.evaluate_images",
        "run.pictures_every",
        "run.strategy",
        "run.device",
        "run.devices",
        "run.nodes",
    }
)

# What may grow when a run is continued.
LENGTH = frozenset({"run.updates", "run.epochs"})


def from_dict(data: dict[str, Any], origin: str = "configuration") -> PretrainConfig:
    """A configuration from nested mappings; what is absent has its default.

    Args:
        data: as YAML gives them.
        origin: where they come from, for messages.

    Raises:
        ConfigError: a key nobody knows (the nearest known one is said), a value of another type, settings that do not
            hold together, or a format version from the future.
    """
    import jsonargparse  # takes a tenth of a second

    # A newer format may have keys this version does not know, so its version is looked at first.
    version = data.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        PretrainConfig(format_version=version)
    _check_keys(data, PretrainConfig, origin, "")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PretrainConfig, None)
    try:
        return PretrainConfig(**vars(parser.instantiate(parser.parse_object(data))))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"{origin}: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def load_config(path: str | Path, overrides: list[str] | None = None) -> PretrainConfig:
    """A run's configuration from a YAML file, or from one of the package's recipes by its name.

    Args:
        path: a YAML file, or the name of a recipe: continue, cpu-tiny, dofa-base, dofa-large, dofa-plus-small,
            dofa-plus-base, dofa-plus-large.
        overrides: settings that win over the file, as `key.key=value` with a YAML value: `data.stores=[a, b]`.

    Raises:
        ConfigError: like `from_dict`; also no such file or recipe, or a file that is not YAML.
    """
    data = dict(as_mapping(parse_yaml(_recipe_text(path), str(path)), str(path)))
    for override in overrides or []:
        _override(data, override)
    return from_dict(data, str(path))


def print_config(config: PretrainConfig) -> None:
    """Print the whole configuration, defaults included, as YAML that `load_config` reads."""
    print(to_yaml(config), end="")


def to_yaml(config: PretrainConfig) -> str:
    """The whole configuration, defaults included, as YAML that `load_config` reads; addresses without their secrets."""
    return yaml.safe_dump(redact_values(config.to_dict()), sort_keys=False, allow_unicode=True)


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("dofa") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def differences(before: PretrainConfig, now: PretrainConfig) -> list[str]:
    """Settings that matter to the weights and differ, each as `key: before -> now`."""
    old, new = (_flat(redact_values(each.to_dict())) for each in (before, now))
    warmups = {c.optim.warmup(c.run.updates) if c.run.updates else None for c in (before, now)}
    if len(warmups) == 1 and None not in warmups:  # the same, whether as a share or as a number
        new |= {key: old[key] for key in ("optim.warmup_ratio", "optim.warmup_updates")}
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in HOUSEKEEPING)
    if before.distill.teacher and now.distill.teacher and "distill.teacher" in changed:
        changed.remove("distill.teacher")  # compared by content, as stores are, so a moved file continues
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed]


def _recipe_text(path: str | Path) -> bytes | str:
    file = Path(path)
    if file.is_file():
        return read_bytes(file, ConfigError, LARGEST_YAML)
    if file.suffix in (".yaml", ".yml") or len(file.parts) > 1:
        raise ConfigError(f"no configuration file {file}")
    if str(path) not in recipes():
        raise ConfigError(f"no file and no recipe {str(path)!r}: {nearest(str(path), recipes())}")
    return (resources.files("dofa") / "recipes" / f"{path}.yaml").read_text(encoding="utf-8")


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key.key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(data.get(parent), dict):
            data[parent] = {}  # also replaces a single number by one a sensor: data.crop.naip-rgb=64
        data = data[parent]
    data[last] = parse_yaml(text, f"override {shorten(override)!r}")


def _check_keys(data: Any, owner: type, origin: str, where: str) -> None:
    """Refuse unknown keys and nulls where none may stand: jsonargparse names no neighbours and lets nulls through."""
    if not isinstance(data, dict):
        raise ConfigError(f"{origin}: {where.rstrip('.')} is {shorten(repr(data))}; a mapping of settings")
    hints = get_type_hints(owner)
    known = {f.name for f in fields(owner)}
    for key, value in data.items():
        if key not in known:
            raise ConfigError(f"{origin}: unknown key {where}{shorten(str(key))}: {nearest(str(key), known)}")
        hint = hints[key]
        if is_dataclass(hint) and isinstance(hint, type):
            _check_keys(value, hint, origin, f"{where}{key}.")
        elif isinstance(value, str) and get_origin(hint) is tuple:
            raise ConfigError(f"{origin}: {where}{key} is a list: {where}{key}=[{shorten(value)}]")
        elif value is None and not (get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)):
            raise ConfigError(f"{origin}: {where}{key} is empty")


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, entry in value.items():
        # The settings one a sensor and the encoder's changes are one setting each.
        if isinstance(entry, dict) and f"{prefix}{key}" not in (
            "data.crop",
            "data.batch",
            "data.weights",
            "data.band_sets",
            "distill.proxies",
            "model.changes",
        ):
            out |= _flat(entry, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = entry
    return out
