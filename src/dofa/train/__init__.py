"""Training: optimiser and schedule, the loop with exact resume, masked pretraining."""
