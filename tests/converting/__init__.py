"""Tests of loraft/converting."""
