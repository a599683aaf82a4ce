"""Search for the cheapest deployment that meets the objectives, and say why the others lose."""
