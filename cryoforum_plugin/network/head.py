"""Heads: features -> orientation posterior and shift."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cryoforum_plugin.geometry import in_plane_quaternion, right_multiplication_matrix
from cryoforum_plugin.network.device import at_least_float32
from cryoforum_plugin.network.representation import Representation
from cryoforum_plugin.network.ring import RingLinear

# Unit of the shift outputs, a fraction of the box: keeps their gradients of the size of the pose's.
SHIFT_SCALE = 0.03


class NetworkOutput(NamedTuple):
    """What the network says of a batch, float32.

    bingham : `(b, 4, 4)` symmetric A of the orientation posterior.
    shift : `(b, 2)` x, y as a fraction of the working box; translating by +shift centres the particle.
    shift_log_variance : `(b,)` log of the variance of each shift component, same unit squared.
    features : `(b, f)` description of the image; from RotationHead it does not change when the image
    rotates in the plane.
    modes, log_weight : `(b, k, 4, 4)` and `(b, k)`, the hypotheses of a head with k > 1 and the logarithms of
    their weights, which sum to 1; `bingham` is then the heaviest. None with one.
    """

    bingham: Tensor
    shift: Tensor
    shift_log_variance: Tensor
    features: Tensor
    modes: Tensor | None = None
    log_weight: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> NetworkOutput:
        """Apply `function` to each tensor that is there."""
        parts: dict[str, Tensor | None] = self._asdict()
        found: dict[str, Any] = {k: None if part is None else function(part) for k, part in parts.items()}
        return self._replace(**found)


def heaviest(modes: Tensor, log_weight: Tensor) -> Tensor:
    """The heaviest `(b, 4, 4)` of modes `(b, k, 4, 4)` with log weights `(b, k)`."""
    return modes[torch.arange(len(modes), device=modes.device), log_weight.argmax(1)]


class RotationHead(nn.Module):
    """Read the ring of features from every position; bring what each position says into one frame; add.

    Position j sees the image turned by -angle_j, so a pose q' it reports stands for q' * rz(-angle_j) and
    its matrix A_j for M' A_j M with M the right multiplication by rz(angle_j). The sum is a product of
    Bingham distributions and turns exactly with the image. With several `modes` each has its own matrices,
    summed by themselves, and a weight from the mean of its logits over the positions. Their layers start
    from different random weights, which tells the modes apart.
    """

    def __init__(
        self,
        positions: int,
        features: int,
        hidden: int = 256,
        representation: str = "symmetric",
        modes: int = 1,
    ) -> None:
        super().__init__()
        angle = torch.arange(positions) * (2 * math.pi / positions)
        self.to_frame: Tensor
        self.vector_to_frame: Tensor
        self.register_buffer(
            "to_frame", right_multiplication_matrix(in_plane_quaternion(angle)), persistent=False
        )
        cos, sin = angle.cos(), angle.sin()
        vector = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        self.register_buffer("vector_to_frame", vector, persistent=False)  # (positions, 2, 2)
        self.first = RingLinear(positions, features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.representation = Representation(representation)
        self.modes = modes
        self.rotation = nn.Linear(hidden, modes * self.representation.numbers)
        self.shift = nn.Linear(hidden, 3)
        if modes > 1:
            self.weight = nn.Linear(hidden, modes)

    def forward(self, features: Tensor) -> NetworkOutput:
        """Map `(b, positions, features)` to a NetworkOutput."""
        hidden = nn.functional.silu(self.first(features))
        hidden = hidden + nn.functional.silu(self.second(hidden))
        theta, shift = self.rotation(hidden), self.shift(hidden)
        with torch.autocast(features.device.type, enabled=False):
            theta, shift, hidden = (at_least_float32(x) for x in (theta, shift, hidden))
            matrices = self.representation(
                theta.unflatten(-1, (self.modes, -1))
            )  # (b, positions, modes, 4, 4)
            summed = torch.einsum("jki,bjnkl,jlm->bnim", self.to_frame, matrices, self.to_frame)
            modes = summed / math.sqrt(len(self.to_frame))
            vectors = torch.einsum("jxy,bjy->bjx", self.vector_to_frame, shift[..., :2])
            log_weight = self.weight(hidden).mean(1).log_softmax(1) if self.modes > 1 else None
            return NetworkOutput(
                bingham=modes[:, 0] if log_weight is None else heaviest(modes, log_weight),
                shift=SHIFT_SCALE * vectors.mean(1),
                shift_log_variance=shift[..., 2].mean(1) + 2 * math.log(SHIFT_SCALE),
                features=hidden.mean(1),
                modes=None if log_weight is None else modes,
                log_weight=log_weight,
            )


class DenseHead(nn.Module):
    """The paper's head: one dense layer from the pooled features to the numbers of a representation.

    The paper knows no shifts. A second layer reads them from detached features, so that they leave the
    training of the orientation exactly the paper's; it starts at shift 0 of scale SHIFT_SCALE.
    """

    def __init__(self, features: int, representation: str = "qcqp") -> None:
        super().__init__()
        self.representation = Representation(representation)
        self.rotation = nn.Linear(features, self.representation.numbers)
        self.shift = nn.Linear(features, 3)
        nn.init.kaiming_normal_(self.rotation.weight)
        for zero in (self.rotation.bias, self.shift.weight, self.shift.bias):
            nn.init.zeros_(zero)

    def forward(self, features: Tensor) -> NetworkOutput:
        """Map `(b, 1, features)` to a NetworkOutput."""
        # the layers are small, and their output is the pose itself: bfloat16 would coarsen it
        with torch.autocast(features.device.type, enabled=False):
            pooled = at_least_float32(features).squeeze(1)
            shift = self.shift(pooled.detach())
            return NetworkOutput(
                bingham=self.representation(self.rotation(pooled)),
                shift=SHIFT_SCALE * shift[:, :2],
                shift_log_variance=shift[:, 2] + 2 * math.log(SHIFT_SCALE),
                features=pooled,
            )
