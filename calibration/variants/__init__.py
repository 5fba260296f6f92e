"""Variants of a bundle: made, tried, chosen by speed and by an accuracy budget."""
