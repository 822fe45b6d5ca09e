"""Probe: whether a reward is worth training on, measured before training, and calibration of its weights.

Import from its modules: `probe.run.probe`, `probe.calibrate.calibrate`.
"""
