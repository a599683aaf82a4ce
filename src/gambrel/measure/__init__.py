"""Send a workload to a real endpoint and get a run; serve a simulated or a small real one; record and compare.

Names are imported from their own modules, so that whoever only reads a record loads no client: :mod:`.sweep` measures,
:mod:`.record` keeps, :mod:`.results` computes, :mod:`.selfcheck` doubts.
"""
