"""What comes after training: exported models, ONNX, predictions."""
