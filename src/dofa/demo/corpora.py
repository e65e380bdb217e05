"""What the demo learns from and is judged on: simulated scenes, and the real pictures that come with the package."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from dofa import sensors
from dofa.corpus.items import Item, Reading, Sample
from dofa.corpus.packing import pack
from dofa.corpus.readers import read_images
from dofa.corpus.split import SplitConfig
from dofa.sensors import Sensor
from dofa.simulate import CLASSES, Landscape, landscape, observe

SIDE = 64  # pixels of every image of the demo
TRAINED = ("sentinel-1-grd", "sentinel-2-l2a", "naip-rgbn", "gaofen-2", "enmap-202")
NEVER_TRAINED = ("landsat-8-l2-sr", "planetscope-8")
PROBE_SEED = 100_000  # far above any training scene: the probe's landscapes were never seen by anybody
REAL = "-real"  # added to the names of sensors that real pictures are packed under: their statistics are their own
# Real pictures the model trains on beside the simulated ones, and what counts as one place in their file names.
REAL_TRAINED = {
    "naip-rgbn": r"(west|east)_",
    "rgb-aerial": r"/(\w+)\.tif",
    "sentinel-1-grd": r"/(\w+?)[_.]",
    "sentinel-2-l2a": r"/(\w+?)[_.]",
}


def pack_simulated(
    out: Path, names: Sequence[str], scenes: dict[str, int], seed: int, held_out: bool, say: Callable[[str], None]
) -> None:
    """Pack simulated scenes of several sensors: the same ground for all.

    Args:
        out: the store.
        names: of the sensors.
        scenes: of every class, by sensor name.
        seed: of the first scene.
        held_out: keep a tenth of the places from training.
        say: told of every sensor that is done.
    """
    count = max(scenes[name] for name in names)
    grounds = {kind: [landscape(kind, i, SIDE) for i in range(seed, seed + count)] for kind in CLASSES}
    split = SplitConfig("place", 0.1) if held_out else SplitConfig("none")
    for name in names:
        some = [ground for kind in CLASSES for ground in grounds[kind][: scenes[name]]]
        report = pack(simulated_reading(sensors.get(name), some), out, split=split, progress=False)
        say(f"{name}: {sum(report.images.values())} scenes, {report.seconds:.1f} s")


def simulated_reading(sensor: Sensor, grounds: Sequence[Landscape]) -> Reading:
    """Landscapes as one sensor sees them, observed when packing asks for them."""

    def loader(ground: Landscape) -> Callable[[], Sample]:
        return lambda: Sample(observe(ground, sensor), None, CLASSES.index(ground.kind))

    items = [Item(f"simulated/{g.kind}/{g.seed}", f"{g.kind}-{g.seed}", loader(g)) for g in grounds]
    dtype = str(observe(grounds[0], sensor).dtype)
    return Reading(sensor, items, (grounds[0].size, grounds[0].size), dtype, CLASSES)


def pack_real(out: Path) -> None:
    """Pack the package's real pictures in tiles, one place of each sensor held out."""
    for name, place in REAL_TRAINED.items():
        known = sensors.get(name)
        sensor = replace(known, name=name + REAL, title=f"{known.title} (real pictures)")
        reading = read_images(samples() / name, sensor, tile=SIDE, place=place)
        pack(reading, out, split=SplitConfig("place", 0.3), progress=False)


def samples() -> Path:
    """The folder of real pictures: SENSOR/NAME.tif, with LICENCES.md."""
    return Path(str(resources.files("dofa") / "samples"))
