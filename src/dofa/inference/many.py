"""Many scenes in one command: a scene that fails is left out and listed at the end, and the others are written."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from dofa import sensors
from dofa.addresses import redact
from dofa.errors import ConfigError, DataError, DofaError
from dofa.options import Format, OutputOptions, ScenesOptions
from dofa.outputs.work_file import check_out
from dofa.raster import remote
from dofa.raster.factors import check_dn_offsets
from dofa.scene.folders import band_count_of_user, scenes_of
from dofa.scene.metadata import basename
from dofa.scene.opening import open_with
from dofa.scene.scene import Scene

OnError = Callable[[Scene, DofaError], None]
SUFFIX: dict[Format, str] = {"cog": ".tif", "zarr": ".zarr", "geoparquet": ".parquet"}
# Of a file; other dots belong to the name (HLS.S30.T10TEK.2020283T185941.v2.0).
ENDING = re.compile(
    r"\.(tiff?|jp2|vrt|nc|zarr|h5|hdf|img|dat|bsq|bil|bip|hdr|png|jpe?g|xml|json|geojson|safe|zip)$", re.I
)
NUMBER = re.compile(r"\d+(\.\d+)?")
NOT_IN_NAMES = re.compile(r"[^\w.\-+]+")  # an item's id is any text
FILES_A_SCENE = 8  # that one scene keeps open: its own for each thread that reads, and the output's
Thing = TypeVar("Thing")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Written:
    """What a command wrote.

    Attributes:
        paths: of the files.
        skipped: those that an earlier run had finished.
        notes: what should be known about them.
        failed: scenes that were left out, and why.
    """

    paths: tuple[Path, ...]
    skipped: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return 2 if self.failed else 0

    def print(self) -> None:
        """Notes and files on the terminal, then scenes that failed on standard error."""
        self.print_files()
        self.print_failed()

    def print_files(self) -> None:
        """One line a file, the notes before them."""
        for note in self.notes:
            print(note)
        for path in self.paths:
            print(f"{path}{' (was there)' if path in self.skipped else ''}")

    def print_failed(self) -> None:
        """One line for each scene that failed."""
        print_failed(self.failed, len(self.paths) + len(self.failed))


def print_failed(failed: Sequence[tuple[str, str]], count: int) -> None:
    """Name the scenes that failed, one a line, on standard error.

    Args:
        failed: name of each and the reason.
        count: scenes of the command.
    """
    if not failed:
        return
    sys.stdout.flush()
    for name, reason in failed:
        own = next((n for n in (name, basename(name)) if reason.startswith(f"{n}: ")), None)
        print(f"dofa: {name}: {reason if own is None else reason[len(own) + 2 :]}", file=sys.stderr)
    if len(failed) < count:
        print(f"dofa: {len(failed)} of {count} scenes failed: mend them and run the same command", file=sys.stderr)


class Scenes:
    """The scenes of one command, and what became of each.

    Args:
        sources: as named on the command line; a folder may hold many scenes.
        opening: how each is opened, and whether all sources are one scene.
        out: file for one scene, folder for several; None where nothing is written.
        output: form of the outputs, and whether those that are there may be replaced.

    Attributes:
        sources: of each scene.
        opened: scenes that could be opened and did not fail since, in their order.
        failed: name and reason of each of the others.

    Raises:
        ConfigError: an unknown sensor, a folder that may be one scene or many, or an output that cannot be written.
        DofaError: the only scene, or every one for the same reason, cannot be opened.
    """

    def __init__(
        self,
        sources: Sequence[str],
        opening: ScenesOptions,
        out: Path | None = None,
        output: OutputOptions = OutputOptions(),
    ) -> None:
        if opening.sensor is not None:
            sensors.get(opening.sensor)  # an unknown one concerns all scenes: told once, before any is opened
        self.sources = [list(sources)] if opening.stack else [[one] for one in _expanded(sources, opening)]
        check_dn_offsets(opening.dn_offset, self.sources)
        self._out, self._format = out, output.format
        if out is not None:
            check_out(out, len(self.sources), output.overwrite, output.format)
        _allow_open_files(FILES_A_SCENE * len(self.sources))
        self.failed: list[tuple[str, str]] = []
        self._number: dict[int, int] = {}  # of each open scene
        self._names = [basename(group[0]) for group in self.sources]
        self.opened: list[Scene] = []
        for number, group in enumerate(self.sources):
            try:
                scene = open_with(group, opening)
            except DofaError as error:
                self._fail(number, error)
                continue
            self._number[id(scene)] = number
            self._names[number] = scene.name
            self.opened.append(scene)
        self._refuse_none()

    def __len__(self) -> int:
        return len(self.sources)

    def fail(self, scene: Scene, error: DofaError) -> None:
        """Leave a scene out.

        Raises:
            DofaError: that one, of the only scene; or of all alike.
        """
        self.opened.remove(scene)
        scene.close()
        self._fail(self._number[id(scene)], error)
        self._refuse_none()

    def _fail(self, number: int, error: DofaError) -> None:
        if len(self.sources) == 1:
            raise error
        self.failed.append((redact(self.sources[number][0]), " ".join(str(error).split())))

    def _refuse_none(self) -> None:
        """Stop where no scene is left; one line in place of many where all failed alike."""
        if self.opened or len(self.failed) < len(self):
            return
        if len({_without(reason, name) for name, reason in self.failed}) == 1:
            raise DataError(f"{self.failed[0][1]} (all {len(self)} scenes)")
        print_failed(self.failed, len(self))
        raise DataError("no scene is left: the reasons stand above")

    @cached_property
    def paths(self) -> dict[int, Path]:
        """Where the output of each open scene goes, by its `id`."""
        assert self._out is not None
        paths = output_paths(self._names, self._out, self._format, [group[0] for group in self.sources])
        return {id(scene): paths[self._number[id(scene)]] for scene in self.opened}

    def written(self, made: Sequence[Path]) -> Written:
        """What to say at the end.

        Args:
            made: outputs that were made now; the others were there.
        """
        paths = [self.paths[id(scene)] for scene in self.opened]
        notes = merge_warnings([warning for scene in self.opened for warning in scene.warnings])
        return Written(tuple(paths), tuple(p for p in paths if p not in made), tuple(notes), tuple(self.failed))


def _expanded(sources: Sequence[str], opening: ScenesOptions) -> list[str]:
    """Sources of one scene each; how a folder was understood is told at once."""
    count = band_count_of_user(opening.sensor, opening.bands, opening.wavelengths)
    out: list[str] = []
    for source in sources:
        found = scenes_of(source, count)
        if found.note is not None:
            print(f"dofa: {found.note}", file=sys.stderr)
        out += found.scenes
    twice = next((one for one in out if out.count(one) > 1), None) if len(set(out)) < len(out) else None
    if twice is not None:
        raise ConfigError(f"{redact(twice)} is named twice: name each scene once")
    return out


def leave_out_failing(
    scenes: Sequence[Thing], act: Callable[[Sequence[Thing]], Made], on_error: Callable[[Thing, DofaError], None] | None
) -> tuple[list[Thing], Made]:
    """What `act` makes of all scenes together; scenes that it fails on alone are left out.

    Args:
        scenes: or what stands for them.
        on_error: called for each that fails; None to let its error through.

    Returns:
        The scenes that are left, and what was made of them.

    Raises:
        DofaError: without `on_error`, or of all scenes together where each alone works.
    """
    try:
        return list(scenes), act(scenes)
    except DofaError:
        if on_error is None:
            raise
    left = []
    for scene in scenes:
        try:
            act([scene])
        except DofaError as error:
            on_error(scene, error)
        else:
            left.append(scene)
    return left, act(left)


def output_paths(
    names: Sequence[str], out: Path, format: Format | None, sources: Sequence[str] | None = None
) -> list[Path]:
    """Where the files of scenes go: `out` for one, else files in the folder `out`, named as the scenes are.

    Scenes of one name from several folders get the folders' names before theirs.

    Args:
        names: of the scenes: their files' or, of a product, its own (a STAC item's id).
        sources: a file or folder of each scene.

    Raises:
        ConfigError: several scenes of one name.
    """
    if len(names) == 1:
        return [out]
    stems = [NOT_IN_NAMES.sub("_", ENDING.sub("", name)).lstrip(".") or "scene" for name in names]
    twice = _twice(stems)
    if twice and sources is not None:
        folders = [list(_folders(source)) for source in sources]
        for depth in range(1, 1 + max(map(len, folders))):
            longer = [
                NOT_IN_NAMES.sub("_", "_".join([*folders[i][-depth:], stem])) if stem.casefold() in twice else stem
                for i, stem in enumerate(stems)
            ]
            if not _twice(longer):
                return [out / f"{stem}{SUFFIX[format or 'cog']}" for stem in longer]
        whole = [NOT_IN_NAMES.sub("_", n) if s.casefold() in twice else s for n, s in zip(names, stems, strict=True)]
        stems, twice = (whole, set()) if not _twice(whole) else (stems, twice)  # a.tif beside a.jp2
    if twice:
        raise ConfigError(f"several scenes are named {', '.join(sorted(twice))}: write them to different folders")
    return [out / f"{stem}{SUFFIX[format or 'cog']}" for stem in stems]


def _twice(stems: Sequence[str]) -> set[str]:
    """Names that stand for several scenes, in lower case: some file systems do not tell a.tif from A.tif."""
    plain = [stem.casefold() for stem in stems]
    return {stem for stem in plain if plain.count(stem) > 1}


def _folders(source: str) -> tuple[str, ...]:
    """Names of the folders above a file, or of an address."""
    if remote.is_remote(source):
        return tuple(part for part in redact(source).split("/")[2:-1] if part)
    return Path(source).absolute().parent.parts[1:]


def merge_warnings(warnings: Sequence[str]) -> list[str]:
    """Warnings that several scenes share as one line with the number of scenes; those that differ in numbers as well.

    Args:
        warnings: `title: scene: text` of all scenes.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for warning in warnings:
        title, name, text = _split(warning)
        groups.setdefault((title, NUMBER.sub("0", _without(text, name))), []).append(warning)
    out = []
    for same in groups.values():
        title, name, text = _split(same[0])
        alike = len({_without(text, name) for _, name, text in map(_split, same)}) == 1
        numbers = "" if alike else "; its numbers, dofa info --json tells those of each"
        out.append(same[0] if len(same) == 1 else f"{title}: {text} ({len(same)} scenes, first: {name}{numbers})")
    return out


def _split(warning: str) -> tuple[str, str, str]:
    title, _, rest = warning.partition(": ")
    name, colon, text = rest.partition(": ")
    return (title, name, text) if colon else (title, "", rest)


def _without(text: str, name: str) -> str:
    """A message without the name of the scene, to be compared with another scene's."""
    for word in filter(None, (name, basename(name))):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "…", text)
    return text


def _allow_open_files(count: int) -> None:
    """Raise the number of files this process may open where the system allows more; 1024 hold about 100 scenes."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
