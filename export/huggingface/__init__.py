"""Hugging Face models and folders as export jobs.

What `save_pretrained` wrote comes in; a model with encode and decode, the generation settings, the
tokenizer and the preprocessing leave.
"""
