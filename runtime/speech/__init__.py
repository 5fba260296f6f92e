"""Speech as people use it: segments with times, long recordings, subtitles, live sound.

Sound files or samples enter; segments of text with their times leave. It runs a `Session`, and
knows nothing of backends beyond their protocol.
"""
