"""scaled_nm_linear: y = activation(e4m3(x) @ w.T + bias) + residual, w a ScaledNMMatrix."""
