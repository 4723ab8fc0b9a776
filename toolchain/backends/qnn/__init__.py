"""Target `qnn:<SoC>`: context binaries for Qualcomm's Hexagon tensor processor (HTP), through ONNX Runtime's QNN provider."""
