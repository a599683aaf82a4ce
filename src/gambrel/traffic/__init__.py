"""Logs and traces to workloads; workloads described in figures; synthetic and scaled workloads."""
