"""What a network does with its signal and its gradient, measured on pictures; nothing here trains."""
