"""cryoforum's encoder inside the autoencoder of a generative model: image -> rotation -> projection."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import roma
import torch
from torch import Tensor, nn

from cryoforum_plugin.demo.run import MAP_FILE
from cryoforum_plugin.geometry import angular_distance, random_quaternions
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.working import finish
from cryoforum_plugin.maps.volume import low_pass, read_map
from cryoforum_plugin.network import Encoder, NetworkOutput, RotationHead
from cryoforum_plugin.posterior import mode, negative_log_likelihood
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator

BOX_PX, SHIFT_PX, BATCH, HELD_OUT, START_A, FINEST_A = 32, 1.0, 64, 500, 40.0, 25.0


class Autoencoder(nn.Module):
    """Noisy images `(b, box, box)` and their CTFs -> images without noise, by way of rotation and shift."""

    def __init__(self, volume: Tensor, pixel_size_A: float) -> None:
        super().__init__()
        encoder = Encoder(BOX_PX, channels=8, features=32)
        self.network = nn.Sequential(encoder, RotationHead(encoder.positions, encoder.out_features))
        self.volume = nn.Parameter(volume)
        self.projector = Projector(volume, pixel_size_A, BOX_PX)

    def encode(self, images: Tensor, ctf: Tensor) -> NetworkOutput:
        flipped = torch.fft.irfft2(torch.fft.rfft2(images) * ctf.sign(), s=images.shape[-2:])
        return self.network(finish(flipped))

    def decode(self, rotation: Tensor, shift: Tensor, ctf: Tensor) -> Tensor:
        R, shift_A = roma.unitquat_to_rotmat(rotation), shift * BOX_PX * self.projector.pixel_size_A
        return self.projector.project(R, ctf, shift_A, volume=self.volume)

    def forward(self, images: Tensor, ctf: Tensor) -> tuple[Tensor, Tensor]:
        output = self.encode(images, ctf)
        rotation = mode(output.bingham)
        return self.decode(rotation, output.shift, ctf), rotation


def minimise(loss: Callable[[], Tensor], model: Autoencoder, rate: float, steps: int) -> None:
    """Reduce `loss`; where it does not depend on the volume, that stays as it is."""
    optimiser = torch.optim.Adam([{"params": model.network.parameters()}, {"params": [model.volume]}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [rate, 1e-2], steps, pct_start=0.15)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def run(count: int, steps: tuple[int, int], freeze: str) -> tuple[Autoencoder, list[dict[str, float]]]:
    """Simulate, train, print; return the model and its held-out figures before and after joint learning."""
    generator = torch.manual_seed(1)
    true_map, pixel_size_A = read_map(MAP_FILE)
    settings = SimulationSettings(count=count + HELD_OUT, snr=1.0, shift_px=SHIFT_PX, box_px=BOX_PX)
    simulator = Simulator(true_map, pixel_size_A, settings)
    draw = draw_particles(settings, simulator.pixel_size_A, BOX_PX)
    images = torch.cat([torch.from_numpy(batch) for batch in simulator.images(draw)])
    ctf, truth = ctf_2d(draw.ctf, BOX_PX, simulator.pixel_size_A), torch.from_numpy(draw.rotation)
    scale = float(images.std())
    images, noise = images / scale, simulator.noise_std(draw) / scale
    visible = low_pass(true_map, pixel_size_A, FINEST_A)  # what pixels of 12 A show of the map
    model = Autoencoder(low_pass(true_map, pixel_size_A, START_A) / scale, pixel_size_A)

    def pose_loss() -> Tensor:  # on projections of the volume, whose poses are known
        rows, rotation = torch.randint(count, (BATCH,)), random_quaternions(BATCH, generator)
        shift = SHIFT_PX / BOX_PX * (2 * torch.rand(BATCH, 2) - 1)
        projections = model.decode(rotation, shift, ctf[rows]).detach()
        output = model.encode(projections + noise * torch.randn(projections.shape), ctf[rows])
        off_centre = (BOX_PX * (output.shift - shift)).square().sum(1)
        return (negative_log_likelihood(output.bingham, rotation) + off_centre).mean()

    def image_loss() -> Tensor:  # on the images, whose poses are not
        rows = torch.randint(count, (BATCH,))
        return (model(images[rows], ctf[rows])[0] - images[rows]).square().mean()

    @torch.no_grad()
    def figures() -> dict[str, float]:
        made, rotation = model.eval()(images[count:], ctf[count:])
        model.train()
        error = low_pass(scale * model.volume, pixel_size_A, FINEST_A) - visible
        found = {
            "loss": float((made - images[count:]).square().mean()),
            "noise": noise**2,
            "pose_error_deg": float(angular_distance(rotation, truth[count:]).rad2deg().median()),
            "map_error": float(error.norm() / visible.norm()),
        }
        print({name: round(value, 3) for name, value in found.items()}, flush=True)
        return found

    minimise(pose_loss, model, 4e-3, steps[0])
    before = figures()
    if freeze != "nothing":
        getattr(model, freeze).requires_grad_(False)
    minimise(image_loss, model, 1e-3, steps[1])
    return model, [before, figures()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--steps", type=int, nargs=2, default=[250, 300], help="alone, together")
    parser.add_argument("--freeze", choices=["nothing", "network", "volume"], default="nothing")
    options = parser.parse_args()
    run(options.images, options.steps, options.freeze)
