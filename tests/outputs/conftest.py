"""Scenes in memory and models that can be checked by hand."""

from ..scene.conftest import one_thread, small_model  # noqa: F401
