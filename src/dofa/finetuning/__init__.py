"""Adapting a model to labelled images, and judging what was learned."""
