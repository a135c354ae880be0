"""Tests of loraft.training."""
