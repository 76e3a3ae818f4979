"""split_linear: y = activation(x @ w.T + bias) + residual, w a SplitMatrix."""
