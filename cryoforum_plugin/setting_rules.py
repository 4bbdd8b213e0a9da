"""Which values the settings of a training may have, alone and together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cryoforum_plugin.errors import SettingsError

if TYPE_CHECKING:
    from cryoforum_plugin.settings import Settings

CHOICES = {
    "images.ctf": ("flip", "multiply", "keep", "none"),
    "images.contrast": ("check", "invert", "ignore"),
    "images.preprocessing": ("background", "image", "none"),
    "network.encoder": ("polar", "vgg"),
    "network.representation": ("symmetric", "qcqp", "6d", "quaternion"),
    "network.blur": ("none", "gaussian", "low_pass"),
    "network.pooling": ("max", "max_average", "generalised_mean"),
    "loss.symmetry": ("average", "asymmetric_unit"),
    "training.augmentation": ("full", "noise", "none"),
    "training.optimiser": ("adamw", "adam"),
    "training.branches": ("single", "siamese", "all_pairs"),
    "training.pairs": ("random", "stratified"),
    "training.freeze": ("none", "early", "encoder"),
}


def check(settings: Settings) -> None:
    """Raise SettingsError for the first setting that is out of range."""
    images, network, loss, training = settings.images, settings.network, settings.loss, settings.training
    terms = (loss.likelihood, loss.geodesic, loss.chordal)
    rules = [
        *(
            (_value(settings, key) in known, f"{key} must be {', '.join(known[:-1])} or {known[-1]}")
            for key, known in CHOICES.items()
        ),
        (images.size_px % 2 == 0 and 16 <= images.size_px <= 512, "images.size_px must be even, 16 to 512"),
        (images.diameter_A is None or images.diameter_A > 0, "images.diameter_A must be positive"),
        (images.margin is None or 1 <= images.margin <= 4, "images.margin must be 1 to 4, or none"),
        (
            images.diameter_A is None or images.margin is not None,
            "images.diameter_A needs an images.margin; without, as in preset paper, the whole image is shown",
        ),
        (0 <= training.simulated <= 1, "training.simulated must be 0 to 1"),
        (0 < training.validation_fraction < 1, "training.validation_fraction must be between 0 and 1"),
        (training.epochs is None or training.epochs >= 1, "training.epochs must be at least 1"),
        (training.batch_size >= 2, "training.batch_size must be at least 2"),
        (training.learning_rate > 0, "training.learning_rate must be positive"),
        (training.noise_range >= 1, "training.noise_range must be at least 1"),
        (0 < training.max_shift <= 0.25, "training.max_shift must be above 0, at most 0.25"),
        (0 <= training.seed < 2**31, "training.seed must be 0 to 2147483647"),
        (training.samples >= 1, "training.samples must be at least 1"),
        (0 < training.warm_up < 1, "training.warm_up must be between 0 and 1"),
        (training.weight_decay >= 0, "training.weight_decay must not be negative"),
        (training.gradient_clip > 0, "training.gradient_clip must be positive"),
        (
            training.pairs == "random"
            or (training.branches == "siamese" and training.augmentation != "full"),
            "training.pairs stratified needs training.branches siamese, and training.augmentation noise or none: "
            "turned images have other distances",
        ),
        (0 < training.pair_fraction <= 1, "training.pair_fraction must be above 0, at most 1"),
        (
            training.freeze_epochs is None or (training.freeze_epochs >= 1 and training.freeze != "none"),
            "training.freeze_epochs must be at least 1, and needs training.freeze early or encoder",
        ),
        (
            all(0 <= weight < math.inf for weight in (*terms, loss.distance)),
            "the weights of section loss must not be negative, nor infinite",
        ),
        (0 < loss.shift < math.inf, "loss.shift must be positive: predicted shifts recentre the images"),
        (0 <= loss.outliers <= 0.5, "loss.outliers must be 0 to 0.5"),
        (sum(terms) > 0, "one of loss.likelihood, loss.geodesic and loss.chordal must be above 0"),
        (
            loss.distance == 0 or training.branches != "single",
            "loss.distance needs training.branches siamese or all_pairs",
        ),
        (not loss.curriculum or loss.distance > 0, "loss.curriculum needs a loss.distance above 0"),
        (
            training.augmentation == "full" or training.simulated == 0,
            "training.augmentation noise or none needs training.simulated 0: simulated images are turned and shifted",
        ),
        (1 <= training.folds <= 10, "training.folds must be 1 to 10"),
        (0 <= training.balance_views <= 1, "training.balance_views must be 0 to 1"),
        (
            training.balance_views == 0 or training.branches != "siamese",
            "training.balance_views needs training.branches single or all_pairs: siamese draws pairs",
        ),
        (
            training.balance_views == 0 or training.simulated < 1,
            "training.balance_views needs training.simulated below 1: simulated images have even views already",
        ),
        (training.reference_particles >= 10, "training.reference_particles must be at least 10"),
        (20 <= settings.map_alone.images <= 1_000_000, "map_alone.images must be 20 to 1000000"),
        (0 <= settings.map_alone.centring <= 0.1, "map_alone.centring must be 0 to 0.1"),
        (0 <= settings.map_alone.contrast_spread <= 1, "map_alone.contrast_spread must be 0 to 1"),
        (network.channels >= 1, "network.channels must be at least 1"),
        (network.features >= 1, "network.features must be at least 1"),
        (network.hidden >= 1, "network.hidden must be at least 1"),
        (1 <= network.modes <= 4, "network.modes must be 1 to 4"),
        (
            network.modes == 1 or (network.encoder == "polar" and loss.likelihood > 0),
            "network.modes above 1 needs network.encoder polar and a loss.likelihood above 0",
        ),
        (0 <= network.final_convolutions <= 2, "network.final_convolutions must be 0 to 2"),
        (0 <= network.dropout < 1, "network.dropout must be 0 to below 1"),
    ]
    for holds, message in rules:
        if not holds:
            raise SettingsError(message)


def _value(settings: Settings, key: str) -> str:
    section, name = key.split(".")
    return str(getattr(getattr(settings, section), name))
