"""Files that earlier versions wrote, and tests that they are still read."""
