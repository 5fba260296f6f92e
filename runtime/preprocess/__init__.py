"""Reads files and makes the encoder's inputs of them: pictures, sound, video, text, arrays.

Paths, texts and the input specification of a manifest enter; named numpy arrays with a batch axis
leave. Of the runtime, only `runtime.tokenizer` is imported here; Pillow and soundfile are imported
when a file needs them.
"""
