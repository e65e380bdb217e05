"""Running a model over scenes: tiles, features, maps, and the files they are written to."""
