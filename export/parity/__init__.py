"""The gate: exported graphs decode what the model decodes, or nothing is written."""
