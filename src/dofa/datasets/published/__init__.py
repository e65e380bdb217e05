"""Labelled images in the form in which others published them."""
