"""What is known of a tensor's values, and the ranges and scales made of it."""
