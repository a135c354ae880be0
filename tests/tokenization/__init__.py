"""Tests of loraft/tokenization."""
