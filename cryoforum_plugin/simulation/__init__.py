"""Simulated particles: projections of a map with known poses."""
