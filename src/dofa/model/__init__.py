"""The model: generated kernels, the shared Transformer, masked image modelling, checkpoints."""
