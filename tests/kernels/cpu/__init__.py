"""Tests of `loraft.kernels.cpu`."""
