"""Students that imitate the teacher's blocks on normal images: solved (`RidgeStudents`) or trained (`BlockStudents`).

This package imports `teacher`, `images` and `utils`; the detector and the layers above it import this package.
"""
