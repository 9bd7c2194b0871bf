"""The paper's tables as one sweep: its grid of cells, its trials, its report."""
