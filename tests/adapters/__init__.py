"""Tests of loraft.adapters."""
