"""A saved model is read back as it was, whatever its network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.network.model import Model, build_network, load_model, save_model
from cryoforum_plugin.settings import NetworkSettings, Settings

NETWORKS = [
    NetworkSettings(),
    NetworkSettings(representation="qcqp"),
    NetworkSettings(representation="quaternion"),
    NetworkSettings(encoder="vgg", representation="6d"),
    NetworkSettings(encoder="vgg", blur="gaussian", pooling="max_average", final_convolutions=1),
    NetworkSettings(encoder="vgg", blur="none", pooling="max", final_convolutions=0, dropout=0.0),
]


@pytest.mark.parametrize("network", NETWORKS)
def test_model_is_read_back(tmp_path: Path, network: NetworkSettings) -> None:
    settings = replace(Settings(), network=replace(network, channels=2, features=4, hidden=8))
    calibration = {"views": {"1": {"width": 1.0}}}
    saved = Model(build_network(settings, 32).eval(), settings, WorkingBox(120.0, 32), calibration, {})
    save_model(tmp_path, saved, {})
    loaded = load_model(tmp_path, torch.device("cpu"))
    assert loaded.settings == settings
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for before, after in zip(saved.network(images)[:4], loaded.network(images)[:4], strict=True):
            assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


def test_default_network_has_the_weights_it_always_had() -> None:
    names = build_network(Settings(), 64).head.state_dict()
    assert [name.split(".")[0] for name in names][::2] == ["first", "second", "rotation", "shift"]
