"""Measures the signal and gradient within a network on images; nothing here trains."""
