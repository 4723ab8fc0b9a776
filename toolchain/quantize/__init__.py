"""Quantization: block-wise weights, GPTQ, distillation, cache scales and the data they are calibrated on."""
