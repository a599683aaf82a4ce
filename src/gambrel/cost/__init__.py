"""The roofline: a deployment and a step to seconds and bytes; curves; collectives; queueing formulas."""
