"""DOFA: one Vision Transformer for every Earth-observation sensor.

Importing this package loads neither torch nor rasterio; the names below are fetched when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dofa.errors import DofaError as DofaError
    from dofa.inference.features import embed as embed
    from dofa.model.checkpoint import create as create
    from dofa.model.checkpoint import load as load
    from dofa.pixels import Scaling as Scaling
    from dofa.scene.scene import open_scene as open_scene
    from dofa.sensors import Band as Band
    from dofa.sensors import Sensor as Sensor

_HOME = {
    "Band": "dofa.sensors",
    "DofaError": "dofa.errors",
    "Scaling": "dofa.pixels",
    "Sensor": "dofa.sensors",
    "create": "dofa.model.checkpoint",
    "embed": "dofa.inference.features",
    "load": "dofa.model.checkpoint",
    "open_scene": "dofa.scene.scene",
}
__all__ = ["Band", "DofaError", "Scaling", "Sensor", "__version__", "create", "embed", "load", "open_scene"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dofa' has no attribute {name!r}")
