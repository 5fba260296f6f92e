"""One file per command of `hybrid-deploy`.

A command parses its arguments, calls one function of the library, and prints one report.
"""
