"""Small labelled images held in memory, and a small encoder."""

from ..labelled_images import encoder, make_images  # noqa: F401
