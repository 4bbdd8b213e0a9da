"""The network: image -> orientation posterior (Bingham), shift, features."""

from cryoforum_plugin.network.blur import BlurLayer
from cryoforum_plugin.network.encoder import Encoder
from cryoforum_plugin.network.head import DenseHead, NetworkOutput, RotationHead, heaviest
from cryoforum_plugin.network.pose_network import PoseNetwork
from cryoforum_plugin.network.vgg import VggEncoder

__all__ = [
    "BlurLayer",
    "DenseHead",
    "Encoder",
    "NetworkOutput",
    "PoseNetwork",
    "RotationHead",
    "VggEncoder",
    "heaviest",
]
