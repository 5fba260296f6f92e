"""The version of the package; it stands in every manifest, scales file and engine record."""

__version__ = "0.1.0"
