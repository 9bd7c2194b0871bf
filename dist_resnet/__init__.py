"""Training of pre-activation ResNets at ImageNet scale on Ray (He et al., arXiv:1603.05027)."""
