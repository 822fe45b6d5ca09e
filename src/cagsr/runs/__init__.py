"""Runs on disk: run directory, identity, checkpoints, model card, and the opening of a run by a command.

Import from its modules: `runs.directory.RunDirectory`, `runs.checkpoint.Checkpoints`.
"""
