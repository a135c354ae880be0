"""Several ranks on one machine: gloo runs on CPU cores what NCCL runs on GPUs."""
