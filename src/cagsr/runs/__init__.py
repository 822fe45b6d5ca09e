"""Runs on disk: run directory, identity, checkpoints, model card, and the session that opens a run to train it."""
