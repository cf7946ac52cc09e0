"""Calibration: second moments of a model's activations and gradients, measured once into a file."""
