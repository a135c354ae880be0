"""What goes wrong where long work is done, tried at scale through the command line."""

import pytest

pytest.register_assert_rewrite("tests.faults.cells")
