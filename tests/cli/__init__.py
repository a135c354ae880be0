"""Tests of the command line, without torch where it must go without."""
