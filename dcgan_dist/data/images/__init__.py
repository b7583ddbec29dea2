"""What an image is: formats, decoding, and statistics of pixels."""
