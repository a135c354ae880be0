"""Tests of loraft/merge."""
