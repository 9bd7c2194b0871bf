"""Prediction: what a worker does with a block of images, and what becomes of its answers."""
