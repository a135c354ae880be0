"""Tests of loraft.kernels.low_rank."""
