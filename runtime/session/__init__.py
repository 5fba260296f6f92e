"""A loaded bundle: files or arrays come in, tokens, texts, scores and times leave."""
