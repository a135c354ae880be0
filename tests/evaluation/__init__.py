"""Tests of loraft.evaluation."""
