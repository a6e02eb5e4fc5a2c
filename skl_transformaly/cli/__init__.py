"""The command `transformaly`, and what only it needs: console, files, score tables, evaluation, report.

It imports all other rooms; the library never imports it.
"""
