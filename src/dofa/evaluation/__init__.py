"""How good a model's features are: frozen features, probes, metrics with intervals, benches."""
