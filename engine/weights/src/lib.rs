//! Model configurations and weight files: config.json, safetensors, GGUF.
