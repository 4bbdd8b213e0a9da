"""What a job does alike in RELION and in cryoSPARC; the adapters add where things come from and go to."""
