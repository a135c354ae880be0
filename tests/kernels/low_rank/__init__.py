"""Tests of loraft.kernels.fused."""
