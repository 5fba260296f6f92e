"""Inputs to calibrate and to evaluate with, read from folders, arrays and iterators."""
