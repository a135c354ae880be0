"""Tests of loraft.reporting."""
