"""The plan of an incremental decoder: binding times, token axes, caches; and its executor.

The analysis writes what it finds into a `DecodePlan`; `RowExecutor` computes the nodes of a plan
for new tokens. Imports trace; never analysis, lowering or parity.
"""
