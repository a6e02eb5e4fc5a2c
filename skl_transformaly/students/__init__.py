"""What imitates the teacher's blocks on normal images: solved (`RidgeStudents`) or trained (`BlockStudents`).

The detector and what stands above it may import it; it imports `teacher`, `images` and `utils`.
"""
