"""What an LLM deployment will do under your real traffic, before you buy the GPUs."""
