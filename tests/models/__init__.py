"""Tests of loraft.models."""
