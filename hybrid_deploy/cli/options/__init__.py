"""The options that several commands share, and what they become.

Click's parameters come in, the library's arguments leave.
"""
