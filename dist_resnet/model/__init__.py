"""The residual networks of the paper: any shortcut, placement and depth."""
