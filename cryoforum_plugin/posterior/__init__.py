"""The Bingham distribution: what the network says of an orientation."""

from cryoforum_plugin.posterior.asymmetric_unit import reduce_bingham
from cryoforum_plugin.posterior.bingham import (
    align_to_copy,
    gaps,
    log_normaliser,
    matrix_about,
    matrix_from_upper,
    mode,
    negative_log_likelihood,
    upper_from_matrix,
)
from cryoforum_plugin.posterior.credible import credible_radius, mean_angle, probability_within, summarise

__all__ = [
    "align_to_copy",
    "credible_radius",
    "gaps",
    "log_normaliser",
    "matrix_about",
    "matrix_from_upper",
    "mean_angle",
    "mode",
    "negative_log_likelihood",
    "probability_within",
    "reduce_bingham",
    "summarise",
    "upper_from_matrix",
]
