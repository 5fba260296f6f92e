"""Modules that replace those of Hugging Face models that have no incremental form."""
