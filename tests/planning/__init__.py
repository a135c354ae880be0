"""Tests of loraft.planning."""
