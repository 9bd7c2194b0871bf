"""What a network does with its signal and its gradient, measured on images; nothing here trains."""
