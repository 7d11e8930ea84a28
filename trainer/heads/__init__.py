"""Models: kinds of heads, the bank that stacks them, pooling, loss, regressors."""
