"""cryoSPARC: .cs files to particles and back, and the external job."""
