"""What the images of the original and of the quantized model have in common."""
