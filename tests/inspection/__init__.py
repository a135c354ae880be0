"""Tests of what looks into machines and models."""
