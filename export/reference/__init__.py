"""The reference hybrid model: a CNN and a Transformer decoder that read handwritten digits.

A seed and the scans of scikit-learn enter; lines of digits, trained models and their export jobs
leave. `python -m hybrid_deploy.export.reference.train` makes the weights beside this file again.
Nothing here may import the exporter, which exports any model.
"""
