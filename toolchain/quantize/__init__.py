"""Quantization: block-wise weights, GPTQ, cache scales and the data they are calibrated on."""
