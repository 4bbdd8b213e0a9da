"""Labels some of which are wrong: against the formula, at its ends, and the part that is found."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.posterior import matrix_about, negative_log_likelihood
from cryoforum_plugin.posterior.wrong_labels import estimate_weight, responsibility, robust


def test_agrees_with_the_formula_and_has_its_gradient() -> None:
    nll = torch.tensor([-8.0, -1.0, 0.0, 3.0]).double()
    for weight in (0.01, 0.3, torch.tensor([0.1, 0.2, 0.3, 0.4]).double()):
        density = (1 - weight) * (-nll).exp() + weight
        torch.testing.assert_close(robust(nll, weight), -density.log())
        torch.testing.assert_close(responsibility(nll, weight), weight / density)
    assert gradcheck(lambda x: robust(x, 0.1), nll.requires_grad_())


def test_without_wrong_labels_nothing_changes() -> None:
    nll = torch.tensor([-8.0, 0.0, 1e4]).double().requires_grad_()
    assert torch.equal(robust(nll, 0.0), nll)
    assert torch.equal(responsibility(nll, 0.0), torch.zeros(3).double())
    robust(nll, 0.0).sum().backward()
    assert torch.equal(nll.grad, torch.ones(3).double())
    assert estimate_weight(nll.detach(), 0.0) == 0


def test_impossible_labels_have_no_gradient() -> None:
    nll = torch.tensor([1e5]).double().requires_grad_()
    loss = robust(nll, 0.01)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert nll.grad.abs().max() < 1e-12


def test_the_part_of_wrong_labels_is_found() -> None:
    generator = torch.Generator().manual_seed(1)
    q = random_quaternions(4000, generator).double()
    turn = torch.randn(4000, 4, generator=generator).double() * 0.05
    label = torch.nn.functional.normalize(q + turn, dim=1)
    wrong = torch.rand(4000, generator=generator) < 0.1
    label[wrong] = random_quaternions(int(wrong.sum()), generator).double()
    precision = torch.eye(3).double().expand(4000, 3, 3) / (2 * 0.05) ** 2
    nll = negative_log_likelihood(matrix_about(q, precision), label)
    assert estimate_weight(nll, 0.02, most=0.05) == 0.05
    found = estimate_weight(nll, 0.02)
    assert abs(found - float(wrong.double().mean())) < 0.01
    assert ((responsibility(nll, found) > 0.5) == wrong).double().mean() > 0.99
