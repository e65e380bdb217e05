"""From scenes to features and maps.

Opening, from what a user names to pixels: `sources` (products, lists, sensors told) with `safe`, `stac` and `names`;
`files` and `grid` (bands of several resolutions on one grid), `masks`, `look` (a first look); `scene` holds `Scene` and
`open_scene`, `info` says what will happen.

Running: `tiles` (windows and weights), `chunks` and `inputs` (pixels, normalised), `engine`; `features` and `predict`.

Writing: `layout`, `outputs` and what stands beside them, a journalled work file that becomes COG, Zarr or GeoParquet.
"""
