"""Whole tables from one command: models, data sets and protocols, by one process or many."""
