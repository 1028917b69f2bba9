"""The HTTP server (`app`, `server`) and the engines that answer: transformers here, or vLLM."""
