"""Pretraining corpora: readers of published layouts, the packed store, the mixture of sensors."""
