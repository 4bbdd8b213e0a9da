"""Particles, whatever program they came from."""

from cryoforum_plugin.particles.particle_set import Ctf, FloatArray, IntArray, ParticleSet, Prediction

__all__ = ["Ctf", "FloatArray", "IntArray", "ParticleSet", "Prediction"]
