"""The input of each step: order of the images, windows, decoding, normalization."""
