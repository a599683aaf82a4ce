"""Names to core objects: models, accelerators, prices and efficiency constants, each with its provenance."""
