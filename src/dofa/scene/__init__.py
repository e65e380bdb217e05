"""Opening scenes: bands of one place, from one file or many, on one grid.

`sources` finds out what a user names (products, folders, lists of files) with `safe`, `stac` and `metadata`; `layers`
and `grid` bring bands of several resolutions onto one grid; `masks` reads clouds; `scene` holds `Scene` and
`open_scene`.
"""
