"""The network: image -> orientation posterior (Bingham), shift, invariant features."""

from cryoforum_plugin.network.encoder import Encoder
from cryoforum_plugin.network.head import NetworkOutput, PoseNetwork, RotationHead

__all__ = ["Encoder", "NetworkOutput", "PoseNetwork", "RotationHead"]
