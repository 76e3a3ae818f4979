"""dense_linear: y = activation(x @ w.T + bias) + residual, w a DenseMatrix."""
