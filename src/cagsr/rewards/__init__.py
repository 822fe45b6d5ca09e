"""Rewards: signals and salience, their weighted sum, presets, calibration of the weights, reward models."""
