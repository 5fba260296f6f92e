"""The options that several commands share.

Values of click's parameters enter, and arguments of the library leave: an ExportJob, a
GenerateOptions. Modules here may not import the commands, nor PyTorch before a function runs.
"""
