"""Test-time views: one image seen in several in-plane transformations, combined as Bingham products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryoforum_plugin.geometry import right_multiplication_matrix
from cryoforum_plugin.images.augment import in_plane_operation, mirror, transform_images, transform_vectors
from cryoforum_plugin.network import NetworkOutput, heaviest
from cryoforum_plugin.posterior import align_to_copy, mode
from cryoforum_plugin.posterior.mixture import match_modes

VIEW_COUNTS = (1, 2, 4, 8)


def view_operations(views: int) -> list[tuple[float, bool]]:
    """In-plane angle (rad) and mirror flag of each of `views` views; the first is the image as it is.

    Every second view is mirrored. The angles cover the circle, and within the network's own step of
    22.5 degrees (through which it turns exactly) they cover the fractions evenly.
    """
    turns = max(1, views // 2)
    angles = [k * (2 * math.pi / turns + 2 * math.pi / 16 / turns) for k in range(turns)]
    return [(angle, mirrored) for angle in angles for mirrored in (False, True)][:views]


def predict_views(
    network: Callable[[Tensor], NetworkOutput], images: Tensor, views: int, group: Tensor
) -> NetworkOutput:
    """Predict working images `(b, n, n)` in several views and combine them in the frame of the first.

    The A of a transformed image belongs to q * r, so M' A M, with M q = q * r, belongs to q. The mean of
    these over the views is, up to the width that calibration sets, the product of their distributions.
    With a point group (`group` (g, 4)) each view is first moved to the symmetry copy nearest to the
    first view's mode. `network` normalises and masks each view itself.

    Several modes are brought back one by one, put in the order in which they lie nearest to the first view's
    (`match_modes`: mirroring may well exchange them), and averaged, their log weights too: a product of the
    views mode by mode, scaled as that of single Binghams is.
    """
    outputs = []
    for angle, mirrored in view_operations(views):
        if angle == 0 and not mirrored:
            outputs.append(network(images))
            continue
        turn = torch.full((len(images),), angle, device=images.device)
        flip = torch.full((len(images),), mirrored, device=images.device)
        seen = mirror(images) if angle == 0 else transform_images(images, turn, flip)
        output = network(seen)
        m = right_multiplication_matrix(in_plane_operation(turn, flip))
        output = _brought_back(output, outputs[0], m, group)
        outputs.append(output._replace(shift=_undo(output.shift, turn, flip)))
    if views == 1:
        return NetworkOutput(*outputs[0])
    parts = [dict(output._asdict()) for output in outputs]
    means: dict[str, Any] = {
        name: None if part is None else torch.stack([other[name] for other in parts]).mean(0)
        for name, part in parts[0].items()
    }
    means["features"] = outputs[0].features  # the outlier score is ranked against single views
    mean = outputs[0]._replace(**means)
    if mean.modes is None or mean.log_weight is None:
        return mean
    log_weight = mean.log_weight.log_softmax(1)
    return mean._replace(log_weight=log_weight, bingham=heaviest(mean.modes, log_weight))


def _brought_back(output: NetworkOutput, first: NetworkOutput, m: Tensor, group: Tensor) -> NetworkOutput:
    """A view's matrices in the frame of the `first`, at the copy, and mode by mode, nearest to its own."""
    bingham = m.mT @ output.bingham @ m
    if output.modes is None or output.log_weight is None:
        if len(group) > 1:
            bingham = align_to_copy(bingham, mode(first.bingham), group)
        return output._replace(bingham=bingham)
    assert first.modes is not None
    assert first.log_weight is not None
    modes = m.mT.unsqueeze(1) @ output.modes @ m.unsqueeze(1)
    order = match_modes(modes, first.modes, first.log_weight.exp(), group)
    modes = modes.gather(1, order[..., None, None].expand_as(modes))
    if len(group) > 1:
        found = mode(first.modes).flatten(0, 1)
        modes = align_to_copy(modes.flatten(0, 1), found, group).view_as(modes)
    return output._replace(bingham=bingham, modes=modes, log_weight=output.log_weight.gather(1, order))


def _undo(vectors: Tensor, turn: Tensor, flip: Tensor) -> Tensor:
    """Bring in-plane vectors back: rotate by -turn, then mirror."""
    straight = transform_vectors(vectors, -turn, torch.zeros_like(flip))
    return transform_vectors(straight, torch.zeros_like(turn), flip)
