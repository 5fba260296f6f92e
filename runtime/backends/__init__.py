"""What a backend is, which there are, and which this machine can use.

No vendor library is imported here: each stays in its own room below, loaded when it is chosen.
"""
