"""Tests of loraft.data."""
