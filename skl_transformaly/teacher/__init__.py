"""The frozen, pre-trained network: built, loaded, taken apart into blocks, and watched while it runs.

The students and all that stands above them may import it; it imports `images` and `utils`.
"""
