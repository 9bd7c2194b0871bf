"""Training: the loop, its parts, and the state that a resume restores."""
