"""Cells as a labelled array: coordinates at their centres, names of channels, reference system."""

from typing import TYPE_CHECKING

import numpy as np

from dofa.pixels import Float
from dofa.scene.layout import Layout

if TYPE_CHECKING:
    import xarray


def data_array(values: Float, layout: Layout) -> "xarray.DataArray":
    """Values in memory as xarray knows them.

    Args:
        values: (K, h, w) float32, NaN where invalid.
        layout: of the file they are, or would be, written to.

    Returns:
        (channel, y, x), with `spatial_ref` as rioxarray writes it; a rotated grid has `row` and `col` numbers for
        coordinates, since no single x belongs to a column.
    """
    import xarray

    a, b, c, d, e, f = layout.transform
    coords: dict[str, object] = {"channel": list(layout.names)}
    if b == 0 and d == 0:
        coords |= {"y": f + e * (np.arange(layout.height) + 0.5), "x": c + a * (np.arange(layout.width) + 0.5)}
    if layout.wkt is not None:
        geo = " ".join(f"{v:.17g}" for v in (c, a, b, f, d, e))
        coords["spatial_ref"] = xarray.Variable((), 0, {"crs_wkt": layout.wkt, "GeoTransform": geo})
    return xarray.DataArray(values, dims=("channel", "y", "x"), coords=coords, name=layout.variable, attrs=layout.meta)
