"""Export of a trained model: model.safetensors, model.onnx, a folder of diffusers."""
