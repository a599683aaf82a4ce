"""Send a workload to a real endpoint and get a run."""
