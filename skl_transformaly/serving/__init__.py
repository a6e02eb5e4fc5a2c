"""A detector behind HTTP: requests are read within limits, decoded, scored in batches, and answered.

Only the command line imports it; it imports `images` and `persistence`, and torch only for a model that needs torch.
"""
