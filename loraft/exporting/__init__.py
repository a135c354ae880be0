"""Models and adapters as files of other programs: GGUF for llama.cpp, a Modelfile for Ollama."""
