"""Tests of loraft.optimization."""
