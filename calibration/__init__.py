"""From a float bundle and samples to quantized variants."""
