"""Probe: whether a reward is worth training on, measured before training, and calibration of its weights.

Import from its modules: `probing.run.probe`, `probing.calibrate.calibrate`.
"""
