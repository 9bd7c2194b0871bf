"""One encoded image: its kind, its header and its pixels."""
