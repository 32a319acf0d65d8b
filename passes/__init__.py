"""The passes: pure functions from a convolution to its rewrites."""
