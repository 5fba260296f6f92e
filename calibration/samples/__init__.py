"""Opens the samples that calibration and evaluation run on.

In: folders, files, arrays or iterators, with true texts where they are known. Out: encoder inputs
by name, one sample or one batch at a time. The room imports the core and the runtime's
preprocessing and input checks, no other room of `calibration` and never `export`.
"""
