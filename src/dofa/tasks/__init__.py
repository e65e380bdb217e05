"""Downstream tasks: data sets in their published form, probes and their heads."""
