"""loraft on a CUDA device that computes nothing: what fails there, what waits, and what would be launched."""
