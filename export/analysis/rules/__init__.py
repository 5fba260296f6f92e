"""How each family of operators treats tokens, one file a family; `table` finds a node's rule."""
