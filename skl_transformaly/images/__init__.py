"""Images in any form, as one lazily decoded sequence of arrays; every error about input is raised here.

Any room but `utils` may import it; it imports `utils` only.
"""
