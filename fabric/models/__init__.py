"""Model families, weight sources and tokenizers."""
