"""The head with several hypotheses: one is as it was, several differ, turn with the image and get gradients."""

from __future__ import annotations

import math

import pytest
import torch

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.geometry import in_plane_quaternion, random_quaternions, right_multiplication_matrix
from cryoforum_plugin.learning.losses import label_negative_log_likelihood, orientation_loss
from cryoforum_plugin.network import PoseNetwork, RotationHead
from cryoforum_plugin.posterior import mode
from cryoforum_plugin.prediction.views import predict_views
from cryoforum_plugin.settings import LossSettings, NetworkSettings, preset, with_values

C1 = torch.tensor([[0.0, 0.0, 0.0, 1.0]])


def test_one_mode_is_the_head_of_before() -> None:
    torch.manual_seed(0)
    head = RotationHead(positions=4, features=3, hidden=5)
    output = head(torch.randn(2, 4, 3))
    assert set(head.state_dict()) == {
        f"{layer}.{part}" for layer in ("first", "second", "rotation", "shift") for part in ("weight", "bias")
    }
    assert head.rotation.out_features == 10
    assert output.modes is None
    assert output.log_weight is None


def test_fresh_modes_differ_and_the_heaviest_is_exported() -> None:
    torch.manual_seed(0)
    output = PoseNetwork(32, NetworkSettings(channels=4, features=8, hidden=16, modes=3))(
        torch.randn(5, 1, 32, 32)
    )
    assert output.modes.shape == (5, 3, 4, 4)
    torch.testing.assert_close(output.log_weight.exp().sum(1), torch.ones(5))
    assert torch.equal(output.bingham, output.modes[torch.arange(5), output.log_weight.argmax(1)])
    q = mode(output.modes)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (q[:, first] * q[:, second]).sum(-1).abs().max() < math.cos(math.radians(5) / 2)


def test_modes_turn_with_the_image() -> None:
    torch.manual_seed(0)
    head = RotationHead(positions=8, features=3, hidden=16, modes=2).double()
    features = torch.randn(4, 8, 3, dtype=torch.float64)
    output, turned = head(features), head(features.roll(1, dims=1))
    m = right_multiplication_matrix(in_plane_quaternion(torch.tensor(2 * math.pi / 8).double()))
    torch.testing.assert_close(turned.modes, m.mT @ output.modes @ m)
    torch.testing.assert_close(turned.log_weight, output.log_weight)


def test_every_parameter_of_a_mixture_learns() -> None:
    torch.manual_seed(0)
    head = RotationHead(positions=4, features=3, hidden=8, modes=2)
    q = random_quaternions(6, torch.Generator().manual_seed(1))
    output = head(torch.randn(6, 4, 3))
    nll = label_negative_log_likelihood(output, q, C1)
    orientation_loss(output.bingham, q, C1, LossSettings(), nll).sum().backward()
    for name in ("first", "second", "rotation", "weight"):
        gradient = getattr(head, name).weight.grad
        assert torch.isfinite(gradient).all()
        assert (gradient.abs().amax(1) > 0).all()


@pytest.mark.parametrize("views", [2, 4])
def test_views_are_combined_mode_by_mode(views: int) -> None:
    torch.manual_seed(0)
    network = PoseNetwork(32, NetworkSettings(channels=4, features=8, hidden=16, modes=2)).eval()
    images = torch.randn(3, 32, 32)
    with torch.no_grad():
        output = predict_views(lambda x: network(x.unsqueeze(1)), images, views, C1)
        alone = network(images.unsqueeze(1))
    assert output.modes.shape == alone.modes.shape
    torch.testing.assert_close(output.log_weight.exp().sum(1), torch.ones(3))
    assert torch.equal(output.bingham, output.modes[torch.arange(3), output.log_weight.argmax(1)])
    assert torch.equal(output.features, alone.features)


@pytest.mark.parametrize(
    "values",
    [
        {"network.modes": 5},
        {"network.modes": 2, "network.encoder": "vgg"},
        {"network.modes": 2, "loss.likelihood": 0, "loss.geodesic": 1},
    ],
)
def test_modes_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=r"network\.modes"):
        with_values(preset("default"), values)
