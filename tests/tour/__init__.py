"""Tests of loraft/rows."""
