"""A few hypotheses of one orientation: p(q) = sum_k w_k p(q | A_k), a mixture of Bingham distributions."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from cryoforum_plugin.geometry import left_multiplication_matrix
from cryoforum_plugin.posterior.bingham import mode, negative_log_likelihood


def mixture_negative_log_likelihood(
    modes: Tensor, log_weight: Tensor, quaternion: Tensor, group: Tensor | None = None
) -> Tensor:
    """-log p `(b,)` in nat, float64, of labels `(b, 4)`; equivalent under `group` as for one Bingham.

    modes : `(b, k, 4, 4)`. log_weight : `(b, k)`, normalised.
    """
    nll = negative_log_likelihood(modes, quaternion.unsqueeze(1), group)
    return -torch.logsumexp(log_weight.double() - nll, dim=1)


def heaviest_first(modes: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Modes `(b, k, ...)` and log weights `(b, k)` in descending order of weight."""
    order = log_weight.argsort(dim=1, descending=True, stable=True)
    index = order.view(*order.shape, *[1] * (modes.ndim - 2)).expand_as(modes)
    return modes.gather(1, index), log_weight.gather(1, order)


def match_modes(modes: Tensor, reference: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """`modes` `(b, k, 4, 4)`: order `(b, k)` in which they lie nearest to those of `reference`, one to one.

    The permutation with the largest sum over k of weight `(b, k)` times the squared overlap of the two most
    likely quaternions, modulo `group` `(g, 4)`. k is small: all permutations are tried.
    """
    k, copies = modes.shape[1], left_multiplication_matrix(group.double())
    overlap = torch.einsum("bki,gij,blj->bklg", mode(modes), copies, mode(reference)).square().amax(-1)
    overlap = overlap.mT * weight.unsqueeze(-1)  # (b, k of the reference, k of the modes)
    orders = torch.tensor(list(itertools.permutations(range(k))), device=modes.device)
    places = torch.arange(k, device=modes.device).expand_as(orders)
    return orders[overlap[:, places, orders].sum(-1).argmax(1)]
