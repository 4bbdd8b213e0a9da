"""The training loop: batches, losses, pairs, optimiser."""
