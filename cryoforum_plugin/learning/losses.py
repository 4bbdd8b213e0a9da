"""Training losses: terms of single orientations, of pairs, of shifts; and the paper's curriculum."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import angular_distance_to_group
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.posterior import mode, negative_log_likelihood
from cryoforum_plugin.posterior.mixture import mixture_negative_log_likelihood
from cryoforum_plugin.settings import LossSettings


def shift_negative_log_likelihood(shift: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """-log density `(b,)` of `target` `(b, 2)` under an isotropic normal at `shift` `(b, 2)`.

    log_variance : `(b,)` of each component. The constant log(2 pi) is left out.
    """
    return (shift - target).square().sum(-1) / 2 * (-log_variance).exp() + log_variance


def chordal_distance_squared(p: Tensor, q: Tensor, group: Tensor) -> Tensor:
    """Smallest |p - s q|^2 `(b,)` over signs and the copies s of `group` `(g, 4)`; p, q `(b, 4)`."""
    shape = (len(q), len(group), 4)
    copies = roma.quat_product(group.to(q).expand(shape), q.unsqueeze(1).expand(shape))
    return 2 - 2 * torch.einsum("bi,bgi->bg", p, copies).abs().amax(1)


def label_negative_log_likelihood(output: NetworkOutput, rotation: Tensor, group: Tensor) -> Tensor:
    """-log p `(b,)` (nat) of labels `(b, 4)`, equivalent under `group`, under all that the network says."""
    if output.modes is None or output.log_weight is None:
        return negative_log_likelihood(output.bingham, rotation, group)
    return mixture_negative_log_likelihood(output.modes, output.log_weight, rotation, group)


def orientation_loss(
    bingham: Tensor,
    rotation: Tensor,
    group: Tensor,
    weights: LossSettings,
    likelihood: Tensor | None = None,
) -> Tensor:
    """Weighted terms `(b,)` of single images: likelihood (nat), angle (rad), squared chord.

    bingham : `(b, 4, 4)`. rotation : `(b, 4)` XYZW labels, equivalent under `group` `(g, 4)`. likelihood :
    negative log-likelihoods `(b,)` to use instead of those of `bingham` (wrong labels allowed, several modes).
    """
    total = bingham.new_zeros(len(bingham), dtype=torch.float64)
    if weights.likelihood:
        if likelihood is None:
            likelihood = negative_log_likelihood(bingham, rotation, group)
        total = total + weights.likelihood * likelihood
    if weights.geodesic or weights.chordal:
        found, label, copies = mode(bingham), rotation.double(), group.double()
        if weights.geodesic:
            total = total + weights.geodesic * angular_distance_to_group(found, label, copies)
        if weights.chordal:
            total = total + weights.chordal * chordal_distance_squared(found, label, copies)
    return total


def pairwise_distance(rotation: Tensor, first: Tensor, second: Tensor, group: Tensor) -> Tensor:
    """Angles `(p,)` rad between poses `first` and `second` (rows) of `rotation` `(b, 4)`, modulo `group`."""
    return angular_distance_to_group(rotation[first], rotation[second], group.to(rotation))


def distance_loss(bingham: Tensor, rotation: Tensor, first: Tensor, second: Tensor, group: Tensor) -> Tensor:
    """Mean absolute error (rad) of the distances between the modes of pairs of images; paper, L_DE."""
    known = pairwise_distance(rotation.double(), first, second, group)
    return (pairwise_distance(mode(bingham), first, second, group) - known).abs().mean()


def curriculum(done: float) -> tuple[float, float]:
    """Weights of the image terms (both of a pair, 2 beta_1) and of the distance (beta_2); paper, section 3.5.

    done : part of the training behind, i / I, in [0, 1].
    """
    return math.sqrt(done), 1 - math.sqrt(done)
