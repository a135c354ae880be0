"""Operations between a layer's products, each one kernel on CUDA: written in Triton, which comes with torch there."""
