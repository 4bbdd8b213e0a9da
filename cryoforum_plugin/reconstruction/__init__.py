"""Reconstruction: CTF-weighted back-projection of half sets, Fourier shell correlation."""
