"""The front doors of `dcgan-dist`, one small file each."""
