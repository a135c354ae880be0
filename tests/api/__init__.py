"""Tests of what something bought."""
