"""Tools: what a model, or a caller, may ask the server to do."""
