"""The paper's tables of CIFAR results: their cells, the sweep over them, the report."""
