"""Labelled images: published data sets, and a person's own rasters and labels cut into chips."""
