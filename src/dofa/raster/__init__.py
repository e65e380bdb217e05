"""Opening files as named bands with physical values, a validity mask and a place.

`open_raster` reads anything GDAL opens: `gdal` collects what a file says, `bands` decides which band is which,
`physical_values` what the numbers mean, `masks` which pixels are measured, and `file` reads them.
"""

from dofa.raster.file import PixelWindow, Raster
from dofa.raster.opening import open_known, open_raster

__all__ = ["PixelWindow", "Raster", "open_known", "open_raster"]
