"""The deployable folder: its manifest, its files and their hashes.

`open_bundle` reads a bundle, `staged_bundle` and `staged_variant` write one. It needs numpy and
msgspec alone, so that a device can open what a workstation wrote.
"""
