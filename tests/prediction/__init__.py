"""Tests of loraft.prediction."""
