"""The parity gate: compares the tokens and logits of exported graphs with those of the model.

The model, its graphs as a backend and batches of inputs enter; a Parity leaves, or a ParityError
stops the export. Nothing here may import lowering or huggingface.
"""
