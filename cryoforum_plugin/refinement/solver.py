"""Batched Levenberg-Marquardt over rotation and shift of each particle, in Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer

# Parts of the highest frequency, and steps at each: low frequencies first, where the minimum is wide.
Stages = tuple[tuple[float, int], ...]
FIRST_DAMPING, HIGHEST_DAMPING = 1e-2, 1e6
LARGEST_TURN_RAD = 0.3
SCALE_RANGE = (0.25, 4.0)


@dataclass(frozen=True)
class Observed:
    """Whitened images of a batch on the points of a slicer: noise of variance 1 in each real number.

    data : `(b, K)` complex64. transfer : `(b, K)` what multiplies the reference's slices, CTF and whitening.
    usual : `(b,)` usual contrast relative to the reference; None = not known.
    """

    data: Tensor
    transfer: Tensor
    usual: Tensor | None = None

    def rows(self, rows: Tensor) -> Observed:
        """Those of `rows`."""
        return Observed(
            self.data[rows], self.transfer[rows], None if self.usual is None else self.usual[rows]
        )


@dataclass(frozen=True)
class Refined:
    """Poses of a batch. R : `(b, 3, 3)`. shift_px : `(b, 2)` x, y, translating by it centres the particle.

    scale : `(b,)` contrast relative to the reference. cost : `(b,)` half the squared residual, minus log
    likelihood up to a constant. gain : `(b,)` log likelihood over that of no particle. information : `(b, 5, 5)` inverse covariance of (rotation vector in the
    volume's frame, rad; shift, px).
    """

    R: Tensor
    shift_px: Tensor
    scale: Tensor
    cost: Tensor
    gain: Tensor
    information: Tensor

    def where(self, chosen: Tensor, other: Refined) -> Refined:
        """Rows of self where `chosen` `(b,)`, else of `other`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Refined(*(torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))

    def rows(self, rows: Tensor) -> Refined:
        """Those of `rows`."""
        return Refined(*(values[rows] for values in vars(self).values()))

    def replaced(self, rows: Tensor, other: Refined) -> Refined:
        """All of self, but `other` at `rows`."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Refined(*(a.index_copy(0, rows, b) for a, b in pairs))


@dataclass(frozen=True)
class _State:
    """A pose with what a step needs: gradient `(b, 5)` of the cost, and the information it rests on."""

    R: Tensor
    shift_px: Tensor
    scale: Tensor
    cost: Tensor
    gradient: Tensor
    information: Tensor


class Solver:
    """Refines poses against one reference."""

    def __init__(self, slicer: GradientSlicer) -> None:
        self.slicer, self.points = slicer, slicer.points

    @torch.no_grad()
    def refine(self, observed: Observed, R: Tensor, shift_px: Tensor, stages: Stages) -> Refined:
        """Refine poses R `(b, 3, 3)`, shift_px `(b, 2)` from where they stand.

        A step is kept only where it lowers the residual, so that none ends worse than it began, in the last
        stage's frequencies.
        """
        with torch.autocast(R.device.type, enabled=False):
            highest = float(self.points.radius[-1])
            for part, steps in stages:
                count = max(self.points.count(part * highest), min(16, len(self.points.k)))
                if part >= 1:
                    count = len(self.points.k)
                state = self._evaluate(observed, R, shift_px, count)
                damping = torch.full_like(state.cost, FIRST_DAMPING)
                for _ in range(steps):
                    state, damping = self._step(observed, state, damping, count)
                R, shift_px = state.R, state.shift_px
            gain = _power(observed, count) - state.cost
            return Refined(state.R, state.shift_px, state.scale, state.cost, gain, state.information)

    @torch.no_grad()
    def fit(self, observed: Observed, R: Tensor, shift_px: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Contrast `(b,)` of poses on the first `count` points, and log likelihood `(b,)` over that of no particle."""
        state = self._evaluate(observed, R, shift_px, count)
        return state.scale, _power(observed, count) - state.cost

    def _step(self, observed: Observed, state: _State, damping: Tensor, count: int) -> tuple[_State, Tensor]:
        diagonal = state.information.diagonal(dim1=1, dim2=2)
        # a direction that the images say nothing of stays where it is
        floor = 1e-6 * diagonal.amax(1, keepdim=True) + 1e-12
        damped = state.information + torch.diag_embed(damping[:, None] * diagonal + floor)
        change = -torch.linalg.solve(damped.double(), state.gradient.double()).float()
        turn = change[:, :3]
        turn = turn * (LARGEST_TURN_RAD / turn.norm(dim=1, keepdim=True).clamp(min=LARGEST_TURN_RAD))
        R = roma.rotvec_to_rotmat(turn) @ state.R
        trial = self._evaluate(observed, R, state.shift_px + change[:, 3:], count)
        better = trial.cost < state.cost
        damping = torch.where(better, damping / 5, damping * 8).clamp(1e-6, HIGHEST_DAMPING)
        pairs = zip(vars(trial).values(), vars(state).values(), strict=True)
        kept = _State(*(torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))
        return kept, damping

    def _evaluate(self, observed: Observed, R: Tensor, shift_px: Tensor, count: int) -> _State:
        """Cost, gradient and information of poses on the first `count` points; the scale is the best one."""
        value, turned = self.slicer.values_and_gradients(R, count)
        k = self.points.k[:count] * (2 * math.pi / self.points.box_px)
        # the particle stands displaced by -shift
        phase = torch.polar(observed.transfer[:, :count], shift_px @ k.T)
        rows = value.new_empty(len(R), 7, count)
        torch.mul(phase[:, None], turned, out=rows[:, :3])
        torch.mul(phase, value, out=rows[:, 5])
        torch.mul(rows[:, 5, None], 1j * k.T, out=rows[:, 3:5])
        rows[:, 6] = observed.data[:, :count]
        real = torch.view_as_real(rows).flatten(2)
        product = real @ real.mT  # every inner product of derivatives, model and data
        mm, dm, dd = product[:, 5, 5], product[:, 5, 6], product[:, 6, 6]
        scale = (dm / mm.clamp(min=1e-20)).clamp(min=0)  # protein is bright: noise must not turn it dark
        if observed.usual is not None:
            scale = scale.clamp(*(observed.usual * limit for limit in SCALE_RANGE))
        cost = (dd - 2 * scale * dm + scale.square() * mm) / 2
        gradient = scale[:, None] * (scale[:, None] * product[:, :5, 5] - product[:, :5, 6])
        information = scale.square()[:, None, None] * product[:, :5, :5]
        return _State(R, shift_px, scale, cost, gradient, information)


def _power(observed: Observed, count: int) -> Tensor:
    """Cost `(b,)` of no particle."""
    return torch.view_as_real(observed.data[:, :count]).square().sum((1, 2)) / 2


def whiten(
    transforms: Tensor,
    ctf: Tensor | None,
    noise_power: Tensor,
    points: FourierPoints,
    error_power: Tensor | None = None,
) -> Observed:
    """Pick the points out of transforms `(b, n, n // 2 + 1)` and weight them by their noise.

    Transforms have the particle's centre at [0, 0]. ctf : same shape, or None. noise_power : `(b, shells)`
    mean |noise|^2 of a shell. error_power : `(shells,)` that of the reference's slices, or None: noise too,
    where the CTF lets it through.
    """
    data = transforms.flatten(1)[:, points.index]
    transfer = torch.ones_like(data.real) if ctf is None else ctf.flatten(1)[:, points.index]
    power = noise_power[:, points.shell]
    if error_power is not None:
        power = power + transfer.square() * error_power[points.shell]
    weight = (2 * points.multiplicity / power).sqrt()
    return Observed(data * weight, transfer * weight)
