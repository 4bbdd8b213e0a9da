"""The tables and figures of the paper, each one command."""
