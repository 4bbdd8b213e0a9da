"""The whole network: images -> what is known of each one's pose."""

from __future__ import annotations

from torch import Tensor, nn

from cryoforum_plugin.network.encoder import Encoder
from cryoforum_plugin.network.head import DenseHead, NetworkOutput, RotationHead
from cryoforum_plugin.network.vgg import VggEncoder
from cryoforum_plugin.settings import NetworkSettings


class PoseNetwork(nn.Module):
    """Encoder and head as set: preprocessed images `(b, 1, n, n)` -> NetworkOutput.

    size_px : side of the working box (even); the vgg encoder takes any.
    """

    encoder: Encoder | VggEncoder
    head: RotationHead | DenseHead

    def __init__(self, size_px: int, settings: NetworkSettings | None = None) -> None:
        super().__init__()
        s = settings or NetworkSettings()
        if s.encoder == "vgg":
            self.encoder = VggEncoder(s.channels, s.blur, s.pooling, s.final_convolutions, s.dropout)
            self.head = DenseHead(self.encoder.out_features, s.representation)
        else:
            self.encoder = Encoder(size_px, s.channels, s.features)
            self.head = RotationHead(
                self.encoder.positions, self.encoder.out_features, s.hidden, s.representation, s.modes
            )

    def forward(self, images: Tensor) -> NetworkOutput:
        """Predict for images `(b, 1, size_px, size_px)`."""
        output: NetworkOutput = self.head(self.encoder(images))
        return output
