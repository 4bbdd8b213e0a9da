"""The cryoSPARC external job, through the real client (extra `cryosparc`)."""
