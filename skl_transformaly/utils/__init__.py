"""Helpers without a subject of their own: threads, devices, caches, chunks, files.

Any room may import them; they import no other room.
"""
