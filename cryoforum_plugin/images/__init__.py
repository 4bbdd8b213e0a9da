"""Images: stacks, CTF, the working box, in-plane operations."""
