"""Tests of loraft/serving."""
