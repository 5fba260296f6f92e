"""Hugging Face models and folders as export jobs.

A transformers model or a folder that `save_pretrained` wrote enters; a module with encode and
decode, generation defaults, tokenizer files and preprocessing leave. Nothing here may import
lowering or parity.
"""
