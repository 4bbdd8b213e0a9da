"""Predicting particles as they appear: what is new, rounds, and an output that grows."""
