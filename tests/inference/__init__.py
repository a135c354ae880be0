"""Tests of loraft/inference."""
