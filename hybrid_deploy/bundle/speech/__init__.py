"""What a bundle remembers of a speech model besides its graphs: the tokens that steer it."""
