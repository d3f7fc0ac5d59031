"""Export of a trained model: model.safetensors, model.onnx, page.html, a folder of diffusers."""
