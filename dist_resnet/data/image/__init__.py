"""One encoded image: what kind it is, what its header says, and its pixels."""
