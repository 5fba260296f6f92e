"""How a variant compares with the float one: tokens, error rates, logits."""
