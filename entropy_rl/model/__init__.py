"""The decoder, its head and kernels, its sharding, and its weights from Hugging Face folders and GGUF files."""
