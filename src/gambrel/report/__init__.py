"""Core objects to charts, tables and one self-contained page."""
