"""Rewrites the convolutions of trained ONNX models into cheaper equivalents."""
