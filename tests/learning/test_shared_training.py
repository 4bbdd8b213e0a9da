"""Several processes train what one trains: the same batches, losses, gradients, batch statistics and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared_training import train_cases
from torch import nn

from cryoforum_plugin.launch import Devices, Place
from cryoforum_plugin.launch.run import run_in_processes
from cryoforum_plugin.learning.batches import Share
from cryoforum_plugin.learning.epochs import shared_batch_size
from cryoforum_plugin.learning.shared_norm import SharedBatchNorm2d, share_batch_norm
from cryoforum_plugin.network.encoder import Encoder, fused_for_inference

PAIRS = {"loss__distance": 1.0, "training__batch_size": 64}
CASES: dict[str, dict[str, Any]] = {
    "default": {"values": {}},
    "views": {"values": {"training__balance_views": 0.5, "training__noise_range": 1.3}},
    "particles": {"values": {"training__augmentation": "noise", "training__simulated": 0.0}},
    # a batch shows one particle: one process shows none
    "few": {"values": {"training__batch_size": 32, "training__simulated": 31 / 32}},
    "modes": {"values": {"network__modes": 2}},
    "thawing": {"values": {"training__freeze": "early", "training__freeze_epochs": 1}, "epochs": 2},
    "siamese": {"values": PAIRS | {"training__branches": "siamese"}},
    "all_pairs": {"values": PAIRS | {"training__branches": "all_pairs", "loss__geodesic": 0.5}},
}
for _case in CASES.values():
    _case["values"]["training__learning_rate"] = 2e-3
# the loss of pairs has kinks: rounding errors grow faster in training
ROUGH = ("siamese", "all_pairs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every case in one process and in two."""
    folder = tmp_path_factory.mktemp("shared")
    one = train_cases(Place(), folder / "one", CASES)
    two = run_in_processes(
        "shared_training:train_cases", {"folder": folder / "two", "cases": CASES}, Devices("cpu", 2)
    )
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_first_steps_are_the_same(trained: tuple[dict[str, Any], dict[str, Any]], case: str) -> None:
    one, two = (run[case] for run in trained)
    assert one["steps"] == two["steps"]
    rough = case in ROUGH
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-3 if rough else 1e-5)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-2 if rough else 1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ROUGH])
def test_an_epoch_gives_the_same_network(trained: tuple[dict[str, Any], dict[str, Any]], case: str) -> None:
    one, two = (run[case] for run in trained)
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-3)
    assert two["median_deg"] == pytest.approx(one["median_deg"], abs=1.0)
    for name, weight in one["weights"].items():
        difference = (two["weights"][name] - weight).float().norm() / weight.float().norm().clamp(min=1e-3)
        assert difference < 0.01, name


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("own", [0, 1, 5, 12])
def test_shares_make_up_the_batch_and_keep_pairs_together(own: int, world: int) -> None:
    count = 24
    shares = []
    for rank in range(world):
        share = Share(rank, world)
        shares.append(
            [*range(own)[share.of(0)], *(own + i for i in range(count - own)[share.of(own)])],
        )
        half = len(shares[-1]) // 2
        assert [image + count // 2 for image in shares[-1][:half]] == shares[-1][half:]
    assert sorted(image for share in shares for image in share) == list(range(count))
    assert len({len(share) for share in shares}) == 1


def test_batches_are_rounded_up_to_what_can_be_shared() -> None:
    assert [shared_batch_size(64, world) for world in (1, 2, 3, 5)] == [64, 64, 66, 65]


def test_shared_batch_norm_is_an_ordinary_one_where_it_is_not_training() -> None:
    torch.manual_seed(1)
    network = Encoder(32, 4, 8)
    images = torch.randn(3, 1, 32, 32)
    network(images)
    before = network.eval()(images)
    names = list(network.state_dict())
    share_batch_norm(network)
    assert sum(isinstance(module, SharedBatchNorm2d) for module in network.modules()) == 7
    assert list(network.state_dict()) == names
    assert torch.equal(network(images), before)
    fused = fused_for_inference(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert torch.allclose(fused(images), before, atol=1e-4)
