"""Test-time views: whatever the view, an exact network gives the same answer."""

from __future__ import annotations

import math

import pytest
import torch

from cryoforum_plugin.geometry import right_multiplication_matrix, symmetry_group
from cryoforum_plugin.images.augment import in_plane_operation, transform_vectors
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.posterior import align_to_copy, mode
from cryoforum_plugin.prediction.views import VIEW_COUNTS, predict_views, view_operations

C1 = torch.tensor([[0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("views", VIEW_COUNTS)
def test_view_operations_start_with_the_image_itself_and_differ(views: int) -> None:
    operations = view_operations(views)
    assert operations[0] == (0.0, False)
    assert len(set(operations)) == len(operations) == views
    if views > 1:
        assert sum(mirrored for _, mirrored in operations) == views // 2


class Oracle:
    """Stands for a perfect network: answers with the pose that the transformed image has."""

    def __init__(self, bingham: torch.Tensor, shift: torch.Tensor, views: int) -> None:
        self.bingham, self.shift = bingham, shift
        self.operations = iter(view_operations(views))

    def __call__(self, images: torch.Tensor) -> NetworkOutput:
        angle, mirrored = next(self.operations)
        n = len(images)
        turn, flip = torch.full((n,), angle), torch.full((n,), mirrored)
        m = right_multiplication_matrix(in_plane_operation(turn, flip))
        return NetworkOutput(
            m @ self.bingham @ m.mT,
            transform_vectors(self.shift, turn, flip),
            torch.zeros(n),
            torch.zeros(n, 3),
        )


@pytest.mark.parametrize("views", VIEW_COUNTS)
def test_views_of_a_perfect_network_combine_to_the_same_posterior(views: int) -> None:
    a = torch.randn(5, 4, 4)
    a = a + a.mT
    shift = torch.randn(5, 2)
    combined = predict_views(Oracle(a, shift, views), torch.randn(5, 16, 16), views, C1)
    assert torch.allclose(combined.bingham, a, atol=1e-5)
    assert torch.allclose(combined.shift, shift, atol=1e-6)


def test_views_that_chose_another_symmetry_copy_are_brought_together() -> None:
    group = torch.from_numpy(symmetry_group("D2")).float()
    a = torch.randn(5, 4, 4)
    a = a + a.mT
    other = align_to_copy(a, torch.randn(5, 4), group)
    assert math.isfinite(float(other.sum()))
    views = iter([a, other])

    class Jumping(Oracle):
        def __call__(self, images: torch.Tensor) -> NetworkOutput:
            self.bingham = next(views)
            return super().__call__(images)

    combined = predict_views(Jumping(a, torch.zeros(5, 2), 2), torch.randn(5, 16, 16), 2, group)
    assert torch.allclose(mode(combined.bingham).abs(), mode(a).abs(), atol=1e-4)
