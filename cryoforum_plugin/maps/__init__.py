"""Maps: rebuilt from particles, given by a user, compared with one another, and their symmetry."""
