"""Slow re-implementations, written from the papers alone, that tests compare the package with."""
