"""The backends: the protocol that they implement, their registry, and a room for each of them.

In: a bundle, a variant and `BackendOptions`. Out: a `Backend`, whose `start` returns a `Decoding`.
The files of this folder import no vendor library; `load_backend` imports the room it needs.
"""
