"""Tests of loraft.generation."""
