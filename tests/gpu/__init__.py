"""Tests that need a CUDA GPU, and skip where torch sees none.

On a machine that has one: `pip install -e '.[dev]'` beside its torch for CUDA, then

    pytest --slow tests/gpu

Without a GPU `LORAFT_GPU_TESTS_ON_CPU=1 pytest --slow tests/gpu` runs those marked `gpu(or_cpu=True)` on the CPU: it
shows that nothing in a test itself is wrong before somebody pays for a GPU. Those that look at CUDA's memory, streams
and kernels skip as before. Models here have layers of 64 and 128 inputs (`tests/training/wide.py`): bitsandbytes warns
of fewer on CUDA.
"""
