"""Accuracy of decoded texts: normalisers, error rates, their intervals, and the worst inputs.

In: the true texts and the decoded ones. Out: an `Accuracy`, its changes against a reference, and
the inputs that lose most. The room imports numpy, and jiwer and whisper-normalizer where they are
used; it decodes nothing.
"""
