"""Tests of loraft/tasks."""
