"""Tests of loraft/kernels."""
