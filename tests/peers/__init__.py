"""Tests of `loraft.peers`."""
