"""block_sddmm: dW of a block-sparse layer, dy.T @ x at its live blocks."""
