"""The samples run through the real generation loop, and what every tensor held."""
