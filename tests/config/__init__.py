"""Tests of loraft.config."""
