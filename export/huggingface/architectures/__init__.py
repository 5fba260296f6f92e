"""Hugging Face models as `encode(*inputs) -> memory` and `decode(tokens, *memory) -> logits`.

`base.HuggingFaceModel` adapts all models with the usual interface of transformers. Each model with
another interface has a derived class, in the file of what it reads.
"""
