"""Engines as a cache: their keys, their records, built in a process of their own."""
