"""Training: preparation, batches, losses, the loop."""
