"""What happens to images in each step: order, windows, decoding, normalization."""
