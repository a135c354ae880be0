"""Tests of loraft/io."""
