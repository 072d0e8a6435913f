"""Serve many large language models on few shared devices, across nodes."""
