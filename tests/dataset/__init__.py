"""Tests of loraft/dataset."""
