"""Operations of the model: PyTorch references, and Triton kernels beside them."""
