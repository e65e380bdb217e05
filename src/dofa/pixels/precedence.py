"""Whose word counts: what an image's numbers mean, and the statistics that normalise it.

The precedence of docs/architecture.md. Nothing here guesses: what is not known is an error.
"""

from collections.abc import Mapping
from dataclasses import replace

from dofa.errors import ConfigError
from dofa.pixels.scaling import CURES, Scaling, Source


def resolve_physical(
    user: Scaling | None, file: Scaling | None, product: Scaling | None, what: str = "this image"
) -> Scaling:
    """The step from raw to physical values: what the user says, then the file's own tags, then the sensor's product.

    Args:
        user, file, product: what each of them says, None for nothing.

    Raises:
        ConfigError: nobody says; the three cures are named.
    """
    ranked: list[tuple[Source, Scaling | None]] = [("user", user), ("file", file), ("catalogue", product)]
    for source, scaling in ranked:
        if scaling is not None:
            return replace(scaling.without_stats(), physical_source=source)
    raise ConfigError(
        f"{what}: nothing says what its numbers mean: say it (--unit, with --dn-scale if they are scaled), write "
        "scale, offset and unit tags into the file, or name a sensor whose product defines them (--sensor)"
    )


def resolve_stats(
    physical: Scaling,
    sensor: str,
    *,
    head: Scaling | None = None,
    stats: Scaling | None = None,
    checkpoint: Mapping[str, Scaling | None] | None = None,
    store: Scaling | None = None,
    force: bool = False,
) -> Scaling:
    """Whose statistics normalise a sensor's bands: the head's, then `--stats`, the checkpoint's, the store's.

    Args:
        physical: the bands wanted and their physical values; its own statistics, if any, are ignored.
        sensor: its name, for the checkpoint and the error.
        head: the scaling of a head folder.
        stats: what `--stats` says, its `stats_source` telling where from.
        checkpoint: the scalings of a model's config.json by sensor name.
        store: the scaling of a packed corpus.
        force: let `stats` win over a head.

    Returns:
        `physical` with mean and std; a band without a clip of its own takes the one its statistics were measured with.

    Raises:
        ConfigError: `stats` beside a head without `force`; no statistics at all; a band is missing; another unit.
    """
    if head is not None and stats is not None and not force:
        raise ConfigError(
            "a head carries the statistics it was trained with: leave out --stats, or force it to feed the head others"
        )
    known = {name: s for name, s in (checkpoint or {}).items() if s is not None and s.mean is not None}
    ranked: list[tuple[Source, Scaling | None]] = [
        ("head", None if stats is not None else head),
        ((stats and stats.stats_source) or "user", stats),
        ("checkpoint", known.get(sensor)),
        ("display" if store is not None and store.stats_source == "display" else "corpus", store),
    ]
    found = next(((source, s) for source, s in ranked if s is not None and s.mean is not None), None)
    if found is None:
        knows = f"it knows {', '.join(sorted(known))}" if known else "it knows none"
        raise ConfigError(f"sensor {sensor} has no statistics in this checkpoint ({knows}): {CURES}")
    source, chosen = found
    missing = [b for b in physical.bands if b not in chosen.bands]
    if missing:
        raise ConfigError(
            f"the statistics of sensor {sensor} ({source}) lack band {', '.join(missing[:8])}: leave the band out, or "
            f"{CURES}"
        )
    if chosen.unit != physical.unit:
        raise ConfigError(
            f"sensor {sensor} is in {physical.unit}, its statistics ({source}) in {chosen.unit}: convert the values "
            f"with dofa.pixels.convert_units, or {CURES}"
        )
    chosen = chosen.select(physical.bands)
    clip = tuple(own or theirs for own, theirs in zip(physical.clip, chosen.clip, strict=True))
    return replace(physical, clip=clip, mean=chosen.mean, std=chosen.std, stats_source=source)
