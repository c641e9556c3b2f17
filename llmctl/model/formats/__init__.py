"""Files of weights, whatever model is in them: safetensors and GGUF, read with every promise checked, and written."""
