"""How long a training is: images of a batch and of an epoch, epochs."""

from __future__ import annotations

from cryoforum_plugin.learning.pairs import pairs_in_epoch
from cryoforum_plugin.settings import TrainingSettings


def epoch_images(particles: int, settings: TrainingSettings) -> int:
    """Images shown in one epoch: each particle once, but at least 2,048 (few particles: several times).

    In siamese training, both images of every pair of the epoch.
    """
    if settings.branches == "siamese":
        return 2 * pairs_in_epoch(particles, settings.pair_fraction)
    return max(particles, 2048)


def shared_batch_size(batch_size: int, processes: int) -> int:
    """Images (pairs) of a batch that `processes` can share evenly: at least `batch_size`."""
    return -(-batch_size // processes) * processes


def default_epochs(particles: int, settings: TrainingSettings) -> int:
    """Epochs that show about `settings.samples` images, between 8 and 200."""
    return min(200, max(8, round(settings.samples / epoch_images(particles, settings))))
